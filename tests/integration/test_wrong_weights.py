"""Sources and targets that do not go together: refused by name, and nothing wrong is delivered."""

from collections.abc import Callable

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import DigestMismatch, LoadError, ManifestMismatch, PartialModel, UnsupportedModel
from tests.support.loading import LOCAL, SMALL, TCP, load_into, new_identity


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return new_identity()


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ({"a": torch.zeros(4), "b": torch.zeros(3)}, "'b' is float32"),
        ({"a": torch.zeros(4, dtype=torch.int32), "b": torch.zeros(2)}, "'a' is float32"),
        ({"a": torch.zeros(4)}, r"target lacks 1 tensors \(b\)"),
        ({"a": torch.zeros(4), "b": torch.zeros(2), "c": torch.zeros(1)}, r"source lacks 1 tensors \(c\)"),
    ],
    ids=["shape", "dtype", "unexpected", "missing"],
)
def test_a_model_that_differs_is_refused_unchanged(
    registry: str, identity: mx.SourceIdentity, target: dict[str, torch.Tensor], names: str
) -> None:
    source = {"a": torch.ones(4), "b": torch.ones(2)}
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        with pytest.raises(ManifestMismatch, match=names):
            load_into(target, identity, registry, SMALL)
    assert not any(tensor.any() for tensor in target.values())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
    ],
    ids=["sparse", "quantised"],
)
def test_tensors_that_cannot_be_moved_are_refused_by_name(
    registry: str, identity: mx.SourceIdentity, make: Callable[[], torch.Tensor]
) -> None:
    with pytest.raises(UnsupportedModel, match="'odd'"):
        mx.publish({"odd": make()}, identity, registry=registry, settings=SMALL)
    with pytest.raises(UnsupportedModel, match="'odd'"):
        mx.load({"odd": make()}, identity, registry=registry, settings=SMALL)


@pytest.mark.parametrize("meta", [False, True], ids=["in place", "meta"])
@pytest.mark.parametrize("settings", [TCP, LOCAL], ids=["tcp", "local"])
def test_a_byte_that_flipped_at_the_source_is_named_and_never_delivered(
    registry: str, identity: mx.SourceIdentity, settings: mx.Settings, meta: bool
) -> None:
    settings = settings.model_copy(update={"chunk_bytes": 64 << 10})
    source = {"good": torch.randn(100_000), "bad": torch.randn(100_000)}
    target = {name: torch.zeros(100_000, device="meta" if meta else "cpu") for name in source}
    with mx.publish(source, identity, registry=registry, settings=settings) as publication:
        publication.wait_ready(10)
        source["bad"].view(torch.uint8)[70_000] ^= 1
        with pytest.raises(LoadError if not meta else DigestMismatch) as caught:
            load_into(target, identity, registry, settings)
    cause = caught.value.causes[0] if isinstance(caught.value, PartialModel) else caught.value
    assert isinstance(cause, DigestMismatch)
    assert (cause.tensor, cause.chunk, cause.source) == ("bad", 1, publication.worker_id)
    assert meta == target["bad"].is_meta


def test_two_sources_with_different_manifests_under_one_identity(registry: str, identity: mx.SourceIdentity) -> None:
    wrong, right = {"w": torch.zeros(3)}, {"w": torch.ones(5)}
    with (
        mx.publish(wrong, identity, registry=registry, settings=SMALL) as first,
        mx.publish(right, identity, registry=registry, settings=SMALL) as second,
    ):
        first.wait_ready(10)
        second.wait_ready(10)
        target = {"w": torch.zeros(5)}
        report = load_into(target, identity, registry, SMALL)
    assert report.source == second.worker_id
    assert torch.equal(target["w"], torch.ones(5))


def test_names_tied_at_the_target_must_be_equal_at_the_source(registry: str, identity: mx.SourceIdentity) -> None:
    source = {"embed": torch.ones(4), "head": torch.zeros(4)}
    tied = torch.zeros(4)
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        with pytest.raises(ManifestMismatch, match="tied at the target"):
            load_into({"embed": tied, "head": tied}, identity, registry, SMALL)


def test_tensors_that_overlap_at_the_target_are_checked_once_more(registry: str, identity: mx.SourceIdentity) -> None:
    fused = torch.arange(12.0)
    source = {"left": fused[:8], "right": fused[4:]}
    room = torch.zeros(12)
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        load_into({"left": room[:8], "right": room[4:]}, identity, registry, SMALL)
        assert torch.equal(room, torch.arange(12.0))
    apart = {"left": torch.ones(8), "right": torch.zeros(8)}
    with mx.publish(apart, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        with pytest.raises(PartialModel) as caught:
            load_into({"left": room[:8], "right": room[4:]}, identity, registry, SMALL)
        assert isinstance(caught.value.causes[0], DigestMismatch)
