"""Publishing and loading real modules between two worker servers of this process, over real sockets."""

import gc
import json

import pytest
import torch
from torch import nn

import modelexpress as mx
from modelexpress.memory import HostArena
from tests.support.loading import LOCAL, SMALL, TCP, load_into, new_identity
from tests.support.models import Sample, equal, flaw, raw

DTYPES = sorted((v for v in vars(torch).values() if isinstance(v, torch.dtype)), key=str)
QUANTISED = {torch.qint8, torch.qint32, torch.quint8, torch.quint4x2, torch.quint2x4}


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return new_identity()


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


class Tied(nn.Module):
    """Two layers with one weight, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 8)
        self.last.weight = self.first.weight


def test_a_module_on_the_meta_device_gets_memory(registry: str, identity: mx.SourceIdentity) -> None:
    source = Tied()
    with torch.device("meta"):
        target = Tied()
    vars(target.first.weight)["loader"] = "an engine's attribute"
    with mx.publish(source, identity, registry=registry, settings=SMALL) as publication:
        publication.wait_ready(10)
        load_into(target, identity, registry, SMALL)
    assert equal(target, source)
    assert target.last.weight is target.first.weight
    assert vars(target.first.weight)["loader"] == "an engine's attribute"
    assert HostArena.holding(target.first.weight.data_ptr(), 1), "the target can be published without moving"


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
