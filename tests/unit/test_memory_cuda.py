"""What can be said of CUDA memory without a GPU: the seam is light, and a missing driver is an error with a reason."""

import ctypes
import subprocess
import sys

import pytest
import torch

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_signatures import Access, AllocationProperties, CopyAttributes, IpcHandle


def test_structures_are_as_large_as_the_drivers() -> None:
    sizes = [ctypes.sizeof(kind) for kind in (IpcHandle, AllocationProperties, Access, CopyAttributes)]
    assert sizes == [64, 32, 12, 24]


def test_the_allocator_takes_structures_of_these_sizes_only() -> None:
    arena = pytest.importorskip("modelexpress.memory._arena")
    with pytest.raises(ValueError, match="have other sizes"):
        arena.open(0, 1 << 30, 0, 0, 2 << 20, 1 << 28, 1 << 30, bytes(31), bytes(12))


def test_an_arena_that_does_not_exist_is_not_entered() -> None:
    arena = pytest.importorskip("modelexpress.memory._arena")
    for ask in (arena.enter, arena.state, arena.parts):
        with pytest.raises(ValueError, match="no such arena"):
            ask(1 << 40)
    assert arena.close(1 << 40), "it is as good as closed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_driver_there_is_no_arena() -> None:
    from modelexpress.memory import CudaArena

    with pytest.raises(DeviceError):
        CudaArena()


def test_the_seam_needs_neither_torch_nor_a_driver() -> None:
    code = "import sys, modelexpress.memory; print([n for n in sys.modules if n == 'torch' or 'cuda' in n])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
