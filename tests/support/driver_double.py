"""A double of the CUDA driver for machines without one: device memory is memory of the process."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelexpress.errors import DeviceError


class DriverDouble:
    """Keeps to the driver's rules, and copies as late as they allow: when something waits for a copy's stream.

    Whoever forgets to wait, to make a device current or to give something back finds out.

    Args:
        devices: How many there are.
        copies: How many copies work; each later one fails, as after a fault on the device. None: all do.
    """

    def __init__(self, devices: int = 1, copies: int | None = None) -> None:
        self.streams: list[StreamDouble] = []
        self.buffers: dict[int, ctypes.Array[ctypes.c_ubyte]] = {}
        self._devices = devices
        self._copies_left = copies
        self._current = threading.local()

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a device current on this thread for a block."""
        if not 0 <= device < self._devices:
            raise DeviceError(f"cuDeviceGet: invalid device ordinal {device} (CUDA error 101)")
        outer = getattr(self._current, "device", None)
        self._current.device = device
        try:
            yield
        finally:
            self._current.device = outer

    def stream(self) -> "StreamDouble":
        """Return a stream."""
        self.require_current()
        stream = StreamDouble(self)
        self.streams.append(stream)
        return stream

    def allocate_pinned(self, nbytes: int) -> int:
        """Return the address of a buffer."""
        self.require_current()
        memory = (ctypes.c_ubyte * nbytes)()
        address = ctypes.addressof(memory)
        self.buffers[address] = memory
        return address

    def free_pinned(self, address: int) -> None:
        """Give a buffer back."""
        self.require_current()
        begin, end = address, address + len(self.buffers.pop(address))
        copies = [copy for stream in self.streams for copy in stream.waiting]
        assert not any(begin <= place < end for copy in copies for place in copy[:2]), "copies are under way"

    def require_current(self) -> None:
        """Fail when this thread has no device."""
        assert getattr(self._current, "device", None) is not None, "no device is current on this thread"

    def count_copy(self) -> None:
        """Raise DeviceError when no copy works any more."""
        if self._copies_left is not None:
            if self._copies_left == 0:
                raise DeviceError("cuMemcpyAsync: an illegal memory access was encountered (CUDA error 700)")
            self._copies_left -= 1


class StreamDouble:
    """Copies that wait to be waited for: destination, source, bytes."""

    def __init__(self, driver: DriverDouble) -> None:
        self.waiting: list[tuple[int, int, int]] = []
        self._driver = driver

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Enqueue a copy."""
        self._driver.require_current()
        self._driver.count_copy()
        self.waiting.append((destination, source, nbytes))

    def finish(self) -> None:
        """Carry the copies out."""
        self._driver.require_current()
        for copy in self.waiting:
            ctypes.memmove(*copy)
        self.waiting.clear()

    def close(self) -> None:
        """Give the stream back."""
        self._driver.require_current()
        assert not self.waiting, "copies are under way"
        self._driver.streams.remove(self)
