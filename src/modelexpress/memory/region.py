"""A region: one contiguous range of memory that a source offers as a whole."""

import ctypes
from dataclasses import dataclass

_WRITABLE = 0x200  # PyBUF_WRITE
_view_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


@dataclass(frozen=True)
class Region:
    """A contiguous range of this process's memory.

    Args:
        address: Virtual address of the first byte.
        nbytes: Size in bytes.
        descriptor: File descriptor behind the range, or None where it is ordinary memory. Byte 0 of the file is
            byte 0 of the region.
        device: Ordinal of the CUDA device whose memory it is; None for host memory.
    """

    address: int
    nbytes: int
    descriptor: int | None = None
    device: int | None = None

    def view(self) -> memoryview:
        """Return the bytes of a region in host memory; it must stay mapped while the view is used."""
        return memory_view(self.address, self.nbytes)


def memory_view(address: int, nbytes: int) -> memoryview:
    """Return `nbytes` of this process's memory at `address` as a writable view of bytes.

    Nothing keeps the memory alive: its owner must.
    """
    if nbytes == 0:
        return memoryview(bytearray())
    # An array type of ctypes would be made anew for every size: 20 times as slow for thousands of tensors.
    view: memoryview = _view_of(address, nbytes, _WRITABLE)
    return view
