"""Peer, storage, native: which is tried, and what a load says when all fail."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import modelexpress as mx
from modelexpress.errors import CheckpointError, LoadError, NoSourceFound, RegistryUnreachable
from tests.support.loading import SMALL, new_identity


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return new_identity()


def test_without_a_source_storage_is_next_and_then_the_native_loader(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    state = {"weight": torch.randn(4, 4), "bias": torch.randn(4)}
    save_file(state, tmp_path / "model.safetensors")
    target = nn.Linear(4, 4)
    report = mx.load(target, identity, registry=registry, storage=tmp_path)
    assert report.strategy == "storage"
    assert torch.equal(target.weight, state["weight"])
    assert any("no ready source" in note for note in report.notes)

    def native() -> None:
        target.load_state_dict({name: 2 * tensor for name, tensor in state.items()})

    report = mx.load(target, identity, registry=registry, storage=tmp_path / "missing", native=native)
    assert report.strategy == "native"
    assert torch.equal(target.bias, 2 * state["bias"])


def test_every_cause_is_told_when_nothing_works(registry: str, identity: mx.SourceIdentity, tmp_path: Path) -> None:
    target = nn.Linear(4, 4)
    before = target.weight.clone()
    with pytest.raises(NoSourceFound, match="no ready source"):
        mx.load(target, identity, registry=registry)
    with pytest.raises(LoadError, match="no strategy") as caught:
        mx.load(target, identity, registry=registry, storage=tmp_path)
    assert [type(cause) for cause in caught.value.causes] == [NoSourceFound, CheckpointError]
    assert torch.equal(target.weight, before)


def test_an_unreachable_registry_does_not_stop_a_load_from_storage(identity: mx.SourceIdentity, tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    target = {"w": torch.zeros(3)}
    settings = mx.Settings(source_query_timeout=0.5)
    report = mx.load(target, identity, registry="127.0.0.1:9", storage=tmp_path, settings=settings)
    assert report.strategy == "storage"
    with pytest.raises(RegistryUnreachable, match=r"127\.0\.0\.1:9"):
        mx.load(target, identity, registry="127.0.0.1:9", settings=settings)


def test_storage_converts_dtypes_and_needs_every_tensor(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    save_file({"weight": torch.randn(4, 4), "extra": torch.ones(1)}, tmp_path / "model.safetensors")
    half = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    report = mx.load(half, identity, registry=registry, storage=tmp_path)
    assert any("extra" in note for note in report.notes)
    with pytest.raises(LoadError, match="bias"):
        mx.load(nn.Linear(4, 4), identity, registry=registry, storage=tmp_path)
    with pytest.raises(LoadError, match="other shapes"):
        mx.load(nn.Linear(4, 5, bias=False), identity, registry=registry, storage=tmp_path)


class WithTransient(nn.Module):
    """A weight, and a buffer that checkpoints leave out."""

    transient: torch.Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50_000))
        self.register_buffer("transient", torch.full((50_000,), value), persistent=False)


def test_storage_repairs_what_a_bad_source_left_behind(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    right, target = WithTransient(1.0), WithTransient(5.0)
    save_file(right.state_dict(), tmp_path / "model.safetensors")
    before = target.transient.clone()
    with mx.publish(right, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        right.weight.data.view(torch.uint8)[1] ^= 1
        report = mx.load(target, identity, registry=registry, storage=tmp_path, settings=SMALL)
    assert report.strategy == "storage"
    assert torch.equal(target.weight, torch.ones(50_000))
    assert torch.equal(target.transient, before), "a buffer that storage lacks is as it was"
