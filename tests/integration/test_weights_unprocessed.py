"""Weights from before a post-load step, offered while that step goes on."""

import pytest
import torch
from torch import nn

import modelexpress as mx
from modelexpress.errors import ConfigurationError
from modelexpress.peer import PublicationState
from modelexpress.weights import unprocessed


class Model(nn.Module):
    """A large weight of which another parameter is a part, and a small scale."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.full((768, 768), value), requires_grad=False)
        self.part = nn.Parameter(self.fused[:256], requires_grad=False)
        self.scale = nn.Parameter(torch.full((4,), value), requires_grad=False)


SETTINGS = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20)


def test_new_tensors_and_small_ones_may_be_changed(registry: str) -> None:
    source, target = Model(3.0), Model(0.0)
    identity = mx.SourceIdentity(model_name="unprocessed/kept")
    settings = SETTINGS.model_copy(update={"registry": registry})
    with mx.Worker(settings=settings) as worker:
        offered = mx.offer_unprocessed(source, identity, 2, worker=worker, settings=settings)
        source.scale.mul_(2)
        source.fused = nn.Parameter(source.fused * 2, requires_grad=False)
        assert offered.after_processing() == ()
        assert offered.publication.wait_ready(20)
        mx.load({**mx.rank_tensors(target)}, identity, 2, settings=settings)
    assert torch.equal(target.fused, torch.full((768, 768), 3.0))
    assert torch.equal(target.part, torch.full((256, 768), 3.0))
    assert target.scale.tolist() == [3.0] * 4


def test_what_is_part_of_a_tensor_moves_along(registry: str) -> None:
    source = Model(3.0)
    settings = SETTINGS.model_copy(update={"registry": registry})
    identity = mx.SourceIdentity(model_name="unprocessed/parts")
    with mx.Worker(settings=settings) as worker:
        mx.offer_unprocessed(source, identity, worker=worker, settings=settings)
        assert source.part.data_ptr() == source.fused.data_ptr()


def test_a_source_whose_large_tensors_are_written_into_ends(registry: str, caplog: pytest.LogCaptureFixture) -> None:
    source, target = Model(3.0), Model(0.0)
    identity = mx.SourceIdentity(model_name="unprocessed/changed")
    settings = SETTINGS.model_copy(update={"registry": registry})
    with mx.Worker(settings=settings) as worker:
        offered = mx.offer_unprocessed(source, identity, worker=worker, settings=settings)
        assert offered.publication.wait_ready(20)
        source.fused[700].mul_(2)
        with pytest.raises(mx.ModelExpressError, match="digest"):
            mx.load(mx.rank_tensors(target), identity, settings=settings)
        assert offered.after_processing() == ("fused",)
        assert offered.publication.state is PublicationState.CLOSED
        assert offered.after_processing() == ()
        with pytest.raises(mx.ModelExpressError, match="no ready source"):
            mx.load(mx.rank_tensors(target), identity, settings=settings)
    assert "'fused'" in caplog.text


@pytest.mark.parametrize(("replaced", "ends"), [("all of it", True), ("a twentieth", False)])
def test_a_source_does_not_keep_scarce_memory_that_the_engine_has_replaced(
    replaced: str, ends: bool, registry: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host memory stands for a device's here; as host memory, it is kept (the first test of this file)."""
    monkeypatch.setattr(unprocessed, "_SCARCE", "cpu")
    source = Model(3.0)
    source.more = nn.Parameter(torch.zeros((768 * 19, 768)), requires_grad=False)
    settings = SETTINGS.model_copy(update={"registry": registry})
    identity = mx.SourceIdentity(model_name=f"unprocessed/{replaced}")
    with mx.Worker(settings=settings) as worker:
        offered = mx.offer_unprocessed(source, identity, worker=worker, settings=settings)
        assert offered.after_processing() == ()
        source.fused, source.part, source.scale = Model(6.0).parameters()
        if replaced == "all of it":
            source.more = nn.Parameter(source.more * 2, requires_grad=False)
        assert offered.after_processing() == ()
        assert (offered.publication.state is PublicationState.CLOSED) == ends
    assert ("replaced 0.05 of the 0.05 GB" in caplog.text) == ends


def test_a_worker_that_is_closed_is_said_to_be(registry: str) -> None:
    settings = SETTINGS.model_copy(update={"registry": registry})
    worker = mx.Worker(settings=settings)
    worker.close()
    model = Model(1.0)
    with pytest.raises(ConfigurationError, match="closed"):
        mx.offer_unprocessed(model, mx.SourceIdentity(), worker=worker, settings=settings)
