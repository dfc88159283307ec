"""What can be said of CUDA memory without a GPU: the seam is light, and a missing driver is an error with a reason."""

import ctypes
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
import torch

from modelexpress.errors import DeviceError
from modelexpress.memory import cuda_copy
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


class DriverOfAllocations:
    """Stands for the driver: it knows allocations by address and size, and copies only within them."""

    def __init__(self, *allocations: tuple[int, int]) -> None:
        self._allocations = allocations
        self.copies: list[tuple[int, ...]] = []

    def range(self, address: int) -> tuple[int, int]:
        for base, nbytes in self._allocations:
            if base <= address < base + nbytes:
                return base, nbytes
        raise DeviceError("not an address of a device")

    def status(self, _: str, destination: int, source: int, nbytes: int, stream: object) -> int:
        for address in (destination, source):
            with suppress(DeviceError):
                base, room = self.range(address)
                if address + nbytes > base + room:
                    return 1
        self.copies.append((destination, source, nbytes))
        return 0

    def call(self, name: str, *arguments: Any) -> None:
        if self.status(name, *arguments):
            raise DeviceError(name)


def test_a_copy_that_crosses_allocations_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = DriverOfAllocations((1000, 100), (1100, 100), (5000, 130))
    monkeypatch.setattr(cuda_copy, "driver", lambda: known)
    stream = object.__new__(cuda_copy.Stream)
    stream._driver, stream.handle = known, ctypes.c_void_p()  # type: ignore[assignment]
    stream.copy(1050, 5000, 120)
    stream.copy(1000, 9000, 200)
    assert known.copies == [(1050, 5000, 50), (1100, 5050, 70), (1000, 9000, 100), (1100, 9100, 100)]
