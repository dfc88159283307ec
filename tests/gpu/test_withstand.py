"""Copies between GPUs when a process dies, frees, withdraws or runs out of memory: an error or a whole model, no hang.

The sources that limit their uplink are slow enough to be interrupted for certain; the others are as fast as they can.
"""

import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modelexpress as mx
from modelexpress.errors import LoadError, PartialModel, PeerLost, RegionWithdrawn
from modelexpress.transport.unmapping import settled
from tests.support.patterned_model import MIB, clear, empty, free_bytes, is_right, patterned
from tests.support.patterned_processes import PatternedSource, PatternedTarget
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SETTINGS = mx.Settings(worker_grpc_port=0, chunk_bytes=MIB)
SOURCE, TARGET = "cuda:0", "cuda:1"
VISIBLE = ("0", "1")
"""What the source and the target of a test of processes see."""
SLACK = 64 * MIB
"""What the driver may keep for itself."""
WAIT = 60.0


@dataclass(frozen=True)
class Load:
    """How large a model is, and how fast its sources let it go."""

    megabytes: int
    uplink: int = 0


SLOW = Load(256, 256 * MIB)
LOADS = [pytest.param(SLOW, id="slow"), pytest.param(Load(8192), id="full-speed")]


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


def source_of(registry: str, identity: mx.SourceIdentity, load: Load) -> PatternedSource:
    return PatternedSource(registry, identity, load.megabytes, visible=VISIBLE[0], uplink=load.uplink)


def target_of(registry: str, identity: mx.SourceIdentity, load: Load, share: float = 1.0) -> PatternedTarget:
    return PatternedTarget(registry, identity, load.megabytes, visible=VISIBLE[1], share=share)


def is_back(place: str, free: int) -> bool:
    """Return whether so much memory of a device is free again."""
    return free_bytes(place) >= free - SLACK


@pytest.mark.parametrize("load", LOADS)
def test_a_source_killed_during_a_copy_is_named_and_leaves_no_memory_behind(
    registry: str, identity: mx.SourceIdentity, load: Load
) -> None:
    model = empty(load.megabytes, TARGET)
    before = free_bytes(SOURCE)
    with source_of(registry, identity, load) as source:
        mx.load(model, identity, registry=registry, settings=SETTINGS)  # opens what every load keeps
        assert settled(WAIT)
        own = free_bytes(TARGET)
        clear(model)
        with pytest.raises(PartialModel) as caught:
            mx.load(model, identity, registry=registry, settings=SETTINGS, progress=lambda *_: source.kill())
    assert any(isinstance(cause, PeerLost) for cause in caught.value.causes), caught.value.causes
    assert settled(WAIT)
    wait_until(lambda: is_back(TARGET, own), WAIT)
    wait_until(lambda: is_back(SOURCE, before), WAIT)
    assert torch.ones(8, device=TARGET).sum() == 8, "the device goes on working"


@pytest.mark.parametrize("load", LOADS)
def test_when_a_source_is_killed_during_a_copy_another_one_goes_on(
    registry: str, identity: mx.SourceIdentity, load: Load
) -> None:
    model = empty(load.megabytes, TARGET)
    with ExitStack() as stack:
        sources = [stack.enter_context(source_of(registry, identity, load)) for _ in range(2)]
        killed: list[str] = []

        def kill(*_: int) -> None:
            for source in sources:
                if not killed and source.ask("readers"):
                    source.kill()
                    killed.append(source.worker_id)

        report = mx.load(model, identity, registry=registry, settings=SETTINGS, progress=kill)
    assert len(killed) == 1
    assert report.source not in killed
    assert report.kept_bytes > 0
    assert is_right(model)


def test_when_the_only_source_is_killed_during_a_copy_storage_fills_the_model(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path
) -> None:
    save_file(patterned(SLOW.megabytes, "cpu"), tmp_path / "model.safetensors")
    model = empty(SLOW.megabytes, TARGET)
    with source_of(registry, identity, SLOW) as source:
        report = mx.load(
            model, identity, registry=registry, storage=tmp_path, settings=SETTINGS, progress=lambda *_: source.kill()
        )
    assert report.strategy == "storage"
    assert is_right(model)


@pytest.mark.parametrize("load", LOADS)
def test_a_target_killed_during_a_copy_does_its_source_no_harm(
    registry: str, identity: mx.SourceIdentity, load: Load
) -> None:
    model = empty(load.megabytes, TARGET)
    with source_of(registry, identity, load) as source:
        free = source.ask("free")
        with target_of(registry, identity, load) as target:
            target.wait_until_bytes_arrive()
            target.kill()
        mx.load(model, identity, registry=registry, settings=SETTINGS)
        assert is_right(model), "the next target is served"
        wait_until(lambda: source.ask("readers") == 0, WAIT)
        assert source.ask("right")
        wait_until(lambda: source.ask("free") >= free - SLACK, WAIT)


def test_a_source_that_forgets_its_tensors_under_a_lease_is_read_to_the_end(
    registry: str, identity: mx.SourceIdentity
) -> None:
    model = empty(SLOW.megabytes, TARGET)
    with source_of(registry, identity, SLOW) as source:
        forgotten: list[bool] = []

        def forget(*_: int) -> None:
            if not forgotten:
                forgotten.append(source.ask("forget"))

        mx.load(model, identity, registry=registry, settings=SETTINGS, progress=forget)
        assert forgotten
        assert is_right(model)
        clear(model)
        mx.load(model, identity, registry=registry, settings=SETTINGS)
    assert is_right(model), "the publication goes on, too"


def test_a_publication_closed_under_its_reader_is_named(registry: str, identity: mx.SourceIdentity) -> None:
    model = empty(SLOW.megabytes, TARGET)
    with source_of(registry, identity, SLOW) as source:
        asked: list[bool] = []

        def close(*_: int) -> None:
            if not asked:
                # The answer comes when this process has unmapped the memory: not before the load ends.
                source.tell("close")
            asked.append(True)

        with pytest.raises(LoadError) as caught:
            mx.load(model, identity, registry=registry, settings=SETTINGS, progress=close)
        assert any(isinstance(cause, RegionWithdrawn) for cause in caught.value.causes), caught.value.causes
        assert "does not offer" in str(caught.value)
        assert source.answer() == {"close": True}
        assert source.ask("right"), "the source's own tensors are as before"


@pytest.mark.parametrize(
    ("source_sees", "source_uses", "target_sees", "target_uses"),
    [
        pytest.param("0,1", "cuda:1", "0", "cuda:0", id="second-of-two-to-the-only-one"),
        pytest.param("1", "cuda:0", "1,0", "cuda:1", id="the-only-one-to-second-of-two"),
        pytest.param("0,1", "cuda:1", "1,0", "cuda:1", id="both-second-in-opposite-orders"),
        pytest.param("0", "cuda:0", "0", "cuda:0", id="the-same-device"),
    ],
)
def test_devices_may_have_other_numbers_on_both_sides(
    registry: str, identity: mx.SourceIdentity, source_sees: str, source_uses: str, target_sees: str, target_uses: str
) -> None:
    size = SLOW.megabytes
    with (
        PatternedSource(registry, identity, size, visible=source_sees, place=source_uses),
        PatternedTarget(registry, identity, size, visible=target_sees, place=target_uses) as target,
    ):
        result = target.result()
    assert result == {"transport": "local", "right": True, "places": [target_uses]}


def test_a_target_without_room_says_so_and_its_source_goes_on(registry: str, identity: mx.SourceIdentity) -> None:
    load = Load(4096)
    with source_of(registry, identity, load) as source:
        with target_of(registry, identity, load, share=0.01) as target:
            result = target.result()
            wait_until(lambda: source.ask("readers") == 0, WAIT)
        assert "out of memory" in result.get("text", "").lower(), result
        assert result["untouched"], "the model is still without memory"
        with target_of(registry, identity, load) as target:
            assert target.result()["right"]
