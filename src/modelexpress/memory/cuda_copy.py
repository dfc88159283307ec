"""Copies of the CUDA driver: streams that take many in one call, marks in them, and memory to copy between."""

import ctypes
from collections.abc import Sequence

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_signatures import CopyAttributes

_INVALID_VALUE = 1
_NON_BLOCKING_STREAM = 1
_TIMED_EVENT = 1  # CU_EVENT_BLOCKING_SYNC
_SLEEPING_EVENT = _TIMED_EVENT | 2  # CU_EVENT_DISABLE_TIMING
_ACCESS_IN_STREAM_ORDER = 1
BATCH_CALL = "cuMemcpyBatchAsync_v2"  # of CUDA 13: that of 12.8 has one argument more
MOST_COPIES = 1024
"""Copies that are handed to the driver in one call."""


class Event:
    """A place in a stream that can be waited for; the thread sleeps meanwhile. Made for the current device.

    Args:
        timed: Whether it knows when it was reached, which costs a little.
    """

    def __init__(self, *, timed: bool = False) -> None:
        self._driver = driver()
        self.handle = ctypes.c_void_p()
        self._driver.call("cuEventCreate", ctypes.byref(self.handle), _TIMED_EVENT if timed else _SLEEPING_EVENT)

    def record(self, stream: "Stream") -> None:
        """Mark what the stream was given so far."""
        self._driver.call("cuEventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        """Return when everything before the mark is done; at once, where nothing was marked yet."""
        self._driver.call("cuEventSynchronize", self.handle)

    def close(self) -> None:
        """Give it back."""
        self._driver.call("cuEventDestroy_v2", self.handle)


class Stream:
    """A stream of the current device that does not wait for the default one. For one thread at a time."""

    def __init__(self) -> None:
        self._driver = driver()
        self.handle = ctypes.c_void_p()
        self._driver.call("cuStreamCreate", ctypes.byref(self.handle), _NON_BLOCKING_STREAM)
        self._columns = tuple((ctypes.c_uint64 * MOST_COPIES)() for _ in range(3))
        self._attributes = CopyAttributes(srcAccessOrder=_ACCESS_IN_STREAM_ORDER)
        self._first = ctypes.c_size_t(0)
        self._refused = False

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Enqueue a copy in any direction: host, device, peer device."""
        status = self._driver.status("cuMemcpyAsync", destination, source, nbytes, self.handle)
        if status == 0:
            return
        # The driver refuses what crosses from one allocation into its neighbour, which tensors side by side may do.
        for part in _within_allocations(destination, source, nbytes) if status == _INVALID_VALUE else ():
            self._driver.call("cuMemcpyAsync", *part, self.handle)
            nbytes -= part[2]
        if nbytes:
            self._driver.call("cuMemcpyAsync", destination, source, nbytes, self.handle)

    def copy_all(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Enqueue copies of device memory, each of (destination, source, bytes), in no order among themselves.

        One call for many leaves no pause between them, which one by one costs some 4 microseconds each.
        """
        for start in range(0, len(copies), MOST_COPIES):
            group = copies[start : start + MOST_COPIES]
            if len(group) == 1 or not self._copy_batch(group):
                for copy in group:
                    self.copy(*copy)

    def finish(self) -> None:
        """Wait until everything that was enqueued is done."""
        self._driver.call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Give it back; what it holds is finished first by the device."""
        self._driver.call("cuStreamDestroy_v2", self.handle)

    def _copy_batch(self, copies: Sequence[tuple[int, int, int]]) -> bool:
        """Return whether the driver took them all in one call; if not, that it took some harms nothing."""
        if self._refused or not self._driver.has(BATCH_CALL):
            return False
        count = len(copies)
        for column, values in zip(self._columns, zip(*copies, strict=True), strict=True):
            column[:count] = list(values)
        status = self._driver.status(
            BATCH_CALL, *self._columns, count, ctypes.byref(self._attributes), ctypes.byref(self._first), 1, self.handle
        )
        self._refused = status != 0
        return not self._refused


def _within_allocations(destination: int, source: int, nbytes: int) -> list[tuple[int, int, int]]:
    """Return a copy in parts, none of which leaves an allocation on either side; nothing where it is one part."""
    parts, done = [], 0
    while done < nbytes:
        room = min(_room(destination + done), _room(source + done), nbytes - done)
        parts.append((destination + done, source + done, room))
        done += room
    return parts if len(parts) > 1 else []


def _room(address: int) -> int:
    """Return the bytes from an address to the end of its allocation; for host memory more than any copy has."""
    try:
        base, nbytes = driver().range(address)
    except DeviceError:
        return 1 << 62
    return base + nbytes - address


def allocate_pinned(nbytes: int) -> int:
    """Return the address of page-locked host memory, which devices copy from and to at full speed."""
    address = ctypes.c_void_p()
    driver().call("cuMemAllocHost_v2", ctypes.byref(address), nbytes)
    return address.value or 0


def free_pinned(address: int) -> None:
    """Give page-locked memory back."""
    driver().call("cuMemFreeHost", address)


def allocate_device(nbytes: int) -> int:
    """Return the address of memory of the current device."""
    address = ctypes.c_uint64()
    driver().call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
    return address.value


def free_device(address: int) -> None:
    """Give memory of a device back, when the device has done what it was given."""
    driver().call("cuMemFree_v2", address)
