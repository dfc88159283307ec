"""Sources that are killed in the middle of a load: the target finishes, right, with the verified part kept."""

import signal
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modelexpress as mx
from modelexpress.errors import LoadError, PartialModel, PeerError, TransportError
from modelexpress.peer import PeerClient
from tests.support.sources import SourceProcess, tensors

MEGABYTES = 64
TOTAL = MEGABYTES << 20
WINDOW_BYTES = 4 << 20
"""What may be on its way, unverified, when the source dies: three batches of 1 MiB, and one being checked."""
UPLINK = 32 << 20
"""Bytes a second of sources that are killed: the last tenth takes 0.2 s, so that none has sent all before it dies."""


def settings(transport: str) -> mx.Settings:
    return mx.Settings.model_validate({"transport": transport, "chunk_bytes": 1 << 20, "stall_timeout": 5})


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}


def right(model: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES).items())


class KillAt:
    """A progress callback that kills whichever source is being read, once, at a fraction of the load."""

    def __init__(self, fraction: float, sources: Sequence[SourceProcess]) -> None:
        self._fraction = fraction
        self._sources = sources
        self.killed: list[SourceProcess] = []

    def __call__(self, done: int, total: int) -> None:
        if self.killed or done < self._fraction * total:
            return
        for source in self._sources:
            with PeerClient(source.endpoint) as client:
                if client.readers():
                    source.kill()
                    self.killed.append(source)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_another_source_goes_on_where_the_first_one_died(
    registry: str, identity: mx.SourceIdentity, fraction: float
) -> None:
    model = empty()
    with (
        SourceProcess(registry, identity, MEGABYTES, transport="tcp", uplink=UPLINK) as first,
        SourceProcess(registry, identity, MEGABYTES, transport="tcp", uplink=UPLINK) as second,
    ):
        killer = KillAt(fraction, [first, second])
        report = mx.load(model, identity, registry=registry, progress=killer, settings=settings("tcp"))
    assert right(model)
    assert [report.source] == [s.worker_id for s in (first, second) if s not in killer.killed]
    assert report.kept_bytes >= fraction * TOTAL, "what was verified is not fetched again"
    assert report.kept_bytes <= fraction * TOTAL + 2 * WINDOW_BYTES
    assert report.nbytes == TOTAL


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("meta", [False, True], ids=["in place", "meta"])
def test_storage_finishes_when_the_only_source_died(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path, fraction: float, meta: bool
) -> None:
    save_file(tensors(MEGABYTES), tmp_path / "model.safetensors")
    model = {name: tensor.to("meta") if meta else tensor for name, tensor in empty().items()}
    with SourceProcess(registry, identity, MEGABYTES, transport="tcp", uplink=UPLINK) as source:
        report = mx.load(
            model,
            identity,
            registry=registry,
            storage=tmp_path,
            progress=KillAt(fraction, [source]),
            settings=settings("tcp"),
        )
    assert report.strategy == "storage"
    assert right(model)


def test_a_local_load_survives_its_source_or_goes_on_elsewhere(registry: str, identity: mx.SourceIdentity) -> None:
    model = empty()
    with (
        SourceProcess(registry, identity, MEGABYTES, transport="local") as first,
        SourceProcess(registry, identity, MEGABYTES, transport="local") as second,
    ):
        killer = KillAt(0.5, [first, second])
        mx.load(model, identity, registry=registry, progress=killer, settings=settings("local"))
    assert killer.killed
    assert right(model)


def test_a_second_source_with_other_weights_never_mixes_with_the_first(
    registry: str, identity: mx.SourceIdentity
) -> None:
    model = empty()
    with (
        SourceProcess(registry, identity, MEGABYTES, transport="tcp", seed=0) as first,
        SourceProcess(registry, identity, MEGABYTES, transport="tcp", seed=1) as second,
    ):
        killer = KillAt(0.5, [first, second])
        report = mx.load(model, identity, registry=registry, progress=killer, settings=settings("tcp"))
    seed = 0 if killer.killed == [second] else 1
    assert all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES, seed).items())
    assert report.kept_bytes == 0


@pytest.mark.parametrize("meta", [False, True], ids=["in place", "meta"])
def test_a_load_that_nobody_can_finish_says_so_and_hands_out_nothing(
    registry: str, identity: mx.SourceIdentity, meta: bool
) -> None:
    model = {name: tensor.to("meta") if meta else tensor for name, tensor in empty().items()}
    with (
        SourceProcess(registry, identity, MEGABYTES, transport="tcp") as source,
        pytest.raises((PartialModel, PeerError, TransportError, LoadError)) as caught,
    ):
        mx.load(model, identity, registry=registry, progress=KillAt(0.5, [source]), settings=settings("tcp"))
    assert isinstance(caught.value, PartialModel) != meta
    assert all(tensor.is_meta for tensor in model.values()) == meta


def test_a_frozen_source_is_given_up_within_the_stall_deadline(registry: str, identity: mx.SourceIdentity) -> None:
    model = empty()
    with SourceProcess(registry, identity, MEGABYTES, transport="tcp") as source:

        def freeze(done: int, total: int) -> None:
            source.process.send_signal(signal.SIGSTOP)

        quick = settings("tcp").model_copy(update={"stall_timeout": 1.0})
        with pytest.raises(PartialModel) as caught:
            mx.load(model, identity, registry=registry, progress=freeze, settings=quick)
    assert isinstance(caught.value.causes[0], TransportError)
