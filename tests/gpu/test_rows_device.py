"""Loading some rows of tensors into GPU memory, from a GPU and from host memory."""

import uuid

import pytest
import torch

import modelexpress as mx
from tests.support.device_sources import DeviceSource, device_tensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ROWS = (700, 1501)
"""Of 3,000 rows of two KiB, in chunks of 512 rows: both ends stick out."""


@pytest.mark.parametrize("transport", ["local", "tcp"])
@pytest.mark.parametrize("visible", ["0", ""], ids=["from a GPU", "from the host"])
@pytest.mark.parametrize("meta", [False, True], ids=["in place", "meta"])
def test_rows_arrive_bit_for_bit(registry: str, transport: str, visible: str, meta: bool) -> None:
    identity = mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")
    rows = {f"large.{number}": ROWS for number in range(12)}
    expected = {
        name: tensor[slice(*rows[name])] if name in rows else tensor for name, tensor in device_tensors("cpu").items()
    }
    model = {name: torch.empty_like(tensor, device="meta" if meta else "cuda:0") for name, tensor in expected.items()}
    settings = mx.Settings.model_validate({"transport": transport, "chunk_bytes": 1 << 20})
    with DeviceSource(registry, identity, visible):
        report = mx.load(model, identity, registry=registry, device="cuda:0", rows=rows, settings=settings)
    assert report.transport == transport
    assert all(torch.equal(model[name].cpu(), tensor) for name, tensor in expected.items())
