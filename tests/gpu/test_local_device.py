"""Weights from GPU to GPU between processes that see one device each: bit for bit, also when things go wrong."""

import subprocess
import sys
import uuid
from contextlib import nullcontext, suppress

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import DigestMismatch, LoadError, PartialModel
from modelexpress.memory import CudaArena
from modelexpress.transport.unmapping import settled
from tests.support.device_sources import DeviceSource, device_tensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SETTINGS = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20)
TARGET = "cuda:1"


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


def fits(model: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model[name].cpu(), tensor) for name, tensor in device_tensors("cpu").items())


@pytest.mark.parametrize("room", ["device", "arena", "meta", "host"])
@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_a_model_travels_between_devices_that_see_only_themselves(
    registry: str, identity: mx.SourceIdentity, room: str, allocator: str
) -> None:
    place = {"device": TARGET, "arena": TARGET, "meta": "meta", "host": "cpu"}[room]
    with CudaArena(torch.device(TARGET)) if room == "arena" else nullcontext():
        model = {name: torch.empty_like(tensor, device=place) for name, tensor in device_tensors("cpu").items()}
    with DeviceSource(registry, identity, "0", allocator):
        report = mx.load(model, identity, registry=registry, device=TARGET, settings=SETTINGS)
    assert report.transport == "local", report
    assert fits(model)
    assert all(tensor.device == torch.device("cpu" if room == "host" else TARGET) for tensor in model.values())


def test_a_cache_in_host_memory_feeds_a_device(registry: str, identity: mx.SourceIdentity) -> None:
    model = {name: torch.empty_like(tensor, device=TARGET) for name, tensor in device_tensors("cpu").items()}
    with DeviceSource(registry, identity, ""):
        report = mx.load(model, identity, registry=registry, settings=SETTINGS)
    assert report.transport == "local"
    assert fits(model)


def test_a_source_that_overwrites_its_weights_is_found_out(registry: str, identity: mx.SourceIdentity) -> None:
    model = {name: torch.empty_like(tensor, device=TARGET) for name, tensor in device_tensors("cpu").items()}
    with DeviceSource(registry, identity, "0") as source:
        source.damage("large.3")
        with pytest.raises(PartialModel) as caught:
            mx.load(model, identity, registry=registry, settings=SETTINGS)
    assert isinstance(caught.value.causes[0], DigestMismatch)
    assert caught.value.causes[0].tensor == "large.3"


def test_closing_gives_every_mapping_back(registry: str, identity: mx.SourceIdentity) -> None:
    model = {name: torch.empty_like(tensor, device=TARGET) for name, tensor in device_tensors("cpu").items()}
    free = []
    with DeviceSource(registry, identity, "0"):
        for _ in range(4):
            mx.load(model, identity, registry=registry, settings=SETTINGS)
            assert settled(30)
            torch.cuda.synchronize()
            free.append(torch.cuda.mem_get_info(TARGET)[0])
    assert free[-1] >= free[1] - (8 << 20), "the third and fourth load took no more memory than the second"


def test_a_source_killed_in_the_middle_is_an_error_or_a_finished_load(
    registry: str, identity: mx.SourceIdentity
) -> None:
    model = {name: torch.empty_like(tensor, device=TARGET) for name, tensor in device_tensors("cpu").items()}
    with DeviceSource(registry, identity, "0") as source, suppress(LoadError):
        mx.load(model, identity, registry=registry, settings=SETTINGS, progress=lambda *_: source.kill())
        assert fits(model)
    assert torch.ones(8, device=TARGET).sum() == 8, "the device goes on working"


def test_importing_and_loading_on_the_host_takes_no_device_memory() -> None:
    code = "import modelexpress.weights.load, torch; print(torch.cuda.is_initialized())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
