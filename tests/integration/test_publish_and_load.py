"""Publishing and loading real modules between two worker servers of this process, over real sockets."""

import gc
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import modelexpress as mx
from modelexpress.errors import (
    CheckpointError,
    DigestMismatch,
    LoadError,
    ManifestMismatch,
    NoSourceFound,
    PartialModel,
    RegistryUnreachable,
    UnsupportedModel,
)
from modelexpress.memory import HostArena
from modelexpress.weights.catalog import Model

TCP = mx.Settings(transport="tcp", worker_grpc_port=0)
LOCAL = mx.Settings(transport="local", worker_grpc_port=0)
# Chunks are small, so that even small models take many batches.
SMALL = mx.Settings(worker_grpc_port=0, chunk_bytes=64 << 10)

DTYPES = sorted((v for v in vars(torch).values() if isinstance(v, torch.dtype)), key=str)
QUANTISED = {torch.qint8, torch.qint32, torch.quint8, torch.quint4x2, torch.quint2x4}


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


class Sample(nn.Module):
    """Everything that makes tensors awkward, in one module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.embed = nn.Embedding(64, 48)
        self.head = nn.Linear(48, 64, bias=False)
        self.transposed = nn.Parameter(random(40, 24).t())
        self.strided = nn.Parameter(random(16, 20)[:, ::2], requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 7))
        self.scalar = nn.Parameter(random(1)[0])
        fused = random(3, 32, 8)
        self.query = nn.Parameter(fused[0])
        self.key = nn.Parameter(fused[1])
        self.register_buffer("table", random(33), persistent=False)
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("phase", random(10).to(torch.complex64).conj())
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(random(*parameter.shape))
        self.head.weight = self.embed.weight = nn.Parameter(random(64, 48))


def load_into(target: Model, identity: mx.SourceIdentity, registry: str, settings: mx.Settings) -> mx.LoadReport:
    return mx.load(target, identity, registry=registry, settings=settings)


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(_all(left), _all(right), strict=True)
    return all(a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1]) for a, b in pairs)


def _all(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = module.named_parameters(remove_duplicate=False)
    return [*named, *module.named_buffers(remove_duplicate=False)]


def flaw(module: nn.Module) -> None:
    """Change every value, so that whatever is not received shows."""
    with torch.no_grad():
        for _, tensor in _all(module):
            tensor.zero_()


@pytest.mark.parametrize("settings", [TCP, LOCAL, SMALL], ids=["tcp", "local", "small chunks"])
def test_an_awkward_module_arrives_bit_for_bit(
    registry: str, identity: mx.SourceIdentity, settings: mx.Settings
) -> None:
    source, target = Sample(1), Sample(2)
    before = Sample(1)
    flaw(target)
    with mx.publish(source, identity, registry=registry, settings=settings) as publication:
        assert publication.wait_ready(10)
        assert equal(source, before), "publishing changed the source"
        report = load_into(target, identity, registry, settings)
        assert report.strategy == "peer"
        assert report.source == publication.worker_id
        assert report.transport == ("tcp" if settings is TCP else "local")
    assert equal(target, source)
    assert target.head.weight is target.embed.weight
    assert target.strided.requires_grad is False


def test_a_module_on_the_meta_device_gets_memory(registry: str, identity: mx.SourceIdentity) -> None:
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        target[0].weight.loader = "an engine's attribute"  # type: ignore[assignment]
        target.add_module("tied", nn.Linear(8, 8))
        target.tied.weight = target[0].weight
    source = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    source.add_module("tied", nn.Linear(8, 8))
    source.tied.weight = source[0].weight
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        load_into(target, identity, registry, SMALL)
    assert equal(target, source)
    assert target.tied.weight is target[0].weight
    assert target[0].weight.loader == "an engine's attribute"
    assert HostArena.holding(target[0].weight.data_ptr(), 1), "the target can be published without moving"


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in QUANTISED], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_arrives(registry: str, identity: mx.SourceIdentity, dtype: torch.dtype) -> None:
    def tensors(fill: int) -> dict[str, torch.Tensor]:
        content = bytearray((i * 7 + fill) % 251 for i in range(12 * dtype.itemsize))
        dense = torch.frombuffer(content, dtype=dtype).view(3, 4)
        return {"dense": dense, "permuted": dense.t(), "gaps": torch.frombuffer(bytearray(content), dtype=dtype)[::3]}

    source, target = tensors(1), tensors(2)
    meta = {name: torch.empty_strided(t.shape, t.stride(), dtype=dtype, device="meta") for name, t in target.items()}
    expected = {name: raw(tensor) for name, tensor in source.items()}
    with mx.publish(source, identity, registry=registry, settings=TCP) as publication:
        publication.wait_ready(10)
        for room in (target, meta):
            load_into(room, identity, registry, TCP)
            assert {name: raw(tensor) for name, tensor in room.items()} == expected


def raw(tensor: torch.Tensor) -> list[list[int]]:
    """The bytes of each element, in order of the elements."""
    size = tensor.element_size()
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    index = torch.arange(storage.numel() // size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    rows = storage[: storage.numel() // size * size].view(-1, size)
    return [rows[i].tolist() for i in index.flatten().tolist()]


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


def test_an_unreachable_registry_does_not_stop_a_load_from_storage(
    identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    target = {"w": torch.zeros(3)}
    settings = mx.Settings(source_query_timeout=0.5)
    report = mx.load(target, identity, registry="127.0.0.1:9", storage=tmp_path, settings=settings)
    assert report.strategy == "storage"
    with pytest.raises(RegistryUnreachable, match="127.0.0.1:9"):
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


def test_storage_repairs_what_a_bad_source_left_behind(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    right = nn.BatchNorm1d(50_000)
    right.register_buffer("transient", torch.ones(50_000), persistent=False)
    save_file(right.state_dict(), tmp_path / "model.safetensors")
    target = nn.BatchNorm1d(50_000)
    target.register_buffer("transient", torch.full((50_000,), 5.0), persistent=False)
    flaw_free = target.transient.clone()
    with mx.publish(right, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        right.weight.data.view(torch.uint8)[1] ^= 1
        report = mx.load(target, identity, registry=registry, storage=tmp_path, settings=SMALL)
    assert report.strategy == "storage"
    assert torch.equal(target.weight, torch.ones(50_000))
    assert torch.equal(target.transient, flaw_free), "a buffer that storage lacks is as it was"


def test_two_sources_with_different_manifests_under_one_identity(
    registry: str, identity: mx.SourceIdentity
) -> None:
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


def test_tensors_that_overlap_at_the_target_are_checked_once_more(
    registry: str, identity: mx.SourceIdentity
) -> None:
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


def test_publishing_keeps_aliases_and_frees_the_old_memory(registry: str, identity: mx.SourceIdentity) -> None:
    flat = torch.arange(100, dtype=torch.float32)
    model = {"all": flat, "part": flat[10:20]}
    with mx.publish(model, identity, registry=registry, settings=SMALL) as publication:
        model["part"][0] = -1
        assert flat[10] == -1, "views of one storage still share it"
        assert publication.readers == []


def test_the_memory_of_a_published_model_goes_with_the_last_user(registry: str, identity: mx.SourceIdentity) -> None:
    model = {"w": torch.ones(1000)}
    publication = mx.publish(model, identity, registry=registry, settings=SMALL)
    address = model["w"].data_ptr()
    del model
    gc.collect()
    assert HostArena.holding(address, 4000), "the publication still needs it"
    publication.close()
    del publication
    gc.collect()
    assert not HostArena.holding(address, 4000)


def test_a_plan_moves_nothing(registry: str, identity: mx.SourceIdentity) -> None:
    source, target = {"w": torch.ones(1000)}, {"w": torch.zeros(1000)}
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        plan = mx.plan(target, identity, registry=registry, settings=SMALL)
        assert plan.choice is not None
        assert (plan.choice.worker_id, plan.choice.nbytes) == (publication.worker_id, 4000)
        assert json.loads(plan.json())["prospects"][0]["transport"] == "local"
        assert publication.readers == []
    assert not target["w"].any()


def test_a_report_reads_well_and_is_json(registry: str, identity: mx.SourceIdentity) -> None:
    source = {"w": torch.ones(1000)}
    seen: list[tuple[int, int]] = []
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        report = mx.load(
            {"w": torch.zeros(1000)},
            identity,
            registry=registry,
            settings=SMALL,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen[-1] == (4000, 4000)
    fields = json.loads(report.json())
    assert fields["nbytes"] == 4000
    assert {"find sources", "lease", "manifest", "plan", "connect", "copy and verify"} <= {
        stage["name"] for stage in fields["stages"]
    }
    assert f"from peer {publication.worker_id} over local" in str(report)
