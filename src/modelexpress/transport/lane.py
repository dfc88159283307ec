"""A lane: what one copying thread needs to reach device memory. Lanes are kept for the process's next transfer."""

import ctypes
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from modelexpress.errors import DeviceError, PeerLost
from modelexpress.memory import memory_view
from modelexpress.memory.cuda_copy import Event, Stream, allocate_pinned, free_pinned
from modelexpress.memory.cuda_driver import driver
from modelexpress.transport.pages import make_ready

STAGING_BYTES = 8 << 20
"""A pinned buffer, which crosses PCIe in 150 microseconds. Smaller ones keep threads waiting for the interpreter."""
STAGING_BUFFERS = 2
"""Buffers of each lane that stages: one is filled while one travels."""
STAGING_LANES = 12
"""The most lanes that stage for one reader: 192 MiB of pinned memory."""
CORES_SHARE = 0.75
"""Of the cores that this process may use, at most so many stage."""
AHEAD = 2
"""Parts that a lane is given before the first of them is waited for, so that the device never waits for a thread."""
_KEPT = STAGING_LANES
_ALIGNMENT = 512
"""Ranges in one buffer begin at multiples of this."""


def staging_lanes() -> int:
    """Return how many threads fill or empty pinned buffers: a core copies 5 to 10 GB/s, PCIe takes 55."""
    return max(2, min(STAGING_LANES, int(CORES_SHARE * len(os.sched_getaffinity(0)))))


class Lane:
    """A stream of one device, marks in it, and pinned buffers between host memory and that device.

    For one thread at a time, which has the device's context current: `borrowed_lane` sees to both.
    """

    def __init__(self) -> None:
        self._stream = Stream()
        self._marks = [Event() for _ in range(AHEAD)]
        self._marked = 0
        self._buffers: list[_Buffer] = []
        self._filled = 0

    def copy_all(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Enqueue copies between addresses that the device reaches: (destination, source, bytes) each."""
        self._stream.copy_all(copies)

    def copy_files(self, reads: Iterable[tuple[int, int, int, int]]) -> None:
        """Read descriptors' memory through the pinned buffers; what was enqueued is still on its way on return.

        Args:
            reads: (destination, descriptor, offset, bytes) each. Small ones share a buffer.

        Raises:
            PeerLost: The memory ends early.
        """
        buffer, at = None, 0
        for destination, descriptor, offset, nbytes in reads:
            end = offset + nbytes
            while offset < end:
                if buffer is None or at >= buffer.nbytes:
                    if buffer is not None:
                        buffer.left.record(self._stream)
                    buffer, at = self._next_buffer(), 0
                size = min(end - offset, buffer.nbytes - at)
                _fill(buffer.view[at : at + size], descriptor, offset)
                self._stream.copy(destination, buffer.address + at, size)
                destination, offset = destination + size, offset + size
                at += -(-size // _ALIGNMENT) * _ALIGNMENT
        if buffer is not None:
            buffer.left.record(self._stream)

    def copy_out(self, destination: int, source: int, nbytes: int) -> None:
        """Copy device memory to ordinary host memory through the pinned buffers; it is in place on return."""
        travelling: deque[tuple[_Buffer, int, int]] = deque()
        start = 0
        while start < nbytes:
            buffer = self._next_buffer()
            size = min(buffer.nbytes, nbytes - start)
            self._stream.copy(buffer.address, source + start, size)
            buffer.left.record(self._stream)
            travelling.append((buffer, destination + start, size))
            if len(travelling) == len(self._buffers):
                _empty(*travelling.popleft())
            start += size
        while travelling:
            _empty(*travelling.popleft())

    def mark(self) -> Event:
        """Return a mark behind everything that was enqueued; it is used again after `AHEAD` more."""
        mark = self._marks[self._marked % AHEAD]
        self._marked += 1
        mark.record(self._stream)
        return mark

    def finish(self) -> None:
        """Wait until everything that was enqueued is in place."""
        self._stream.finish()

    def close(self) -> None:
        """Give everything back."""
        self._stream.close()
        for mark in self._marks:
            mark.close()
        for buffer in self._buffers:
            buffer.close()

    def _next_buffer(self) -> "_Buffer":
        """Return the buffer that was used longest ago, when what it held has left it."""
        while len(self._buffers) < STAGING_BUFFERS:
            self._buffers.append(_Buffer(STAGING_BYTES))
        self._filled += 1
        buffer = self._buffers[self._filled % len(self._buffers)]
        buffer.left.wait()
        return buffer


@contextmanager
def borrowed_lane(device: int) -> Iterator[Lane]:
    """Yield a lane of a device for this thread; nothing is under way on it at either end of the block.

    Raises:
        DeviceError: The driver refuses to make one.
    """
    with driver().on(device):
        with _lock:
            lane = _idle[device].pop() if _idle[device] else None
        lane = lane or Lane()
        sound = False
        try:
            yield lane
            lane.finish()
            sound = True
        finally:
            if not sound:
                # Bytes may be on their way; where the device failed for good, none lands any more.
                _finish_quietly(lane)
            _give_back(lane, device, keep=sound)


class _Buffer:
    """Pinned memory, and a mark behind the copy from it or to it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = allocate_pinned(nbytes)
        self.view = memory_view(self.address, nbytes)
        self.left = Event()

    def close(self) -> None:
        self.left.close()
        free_pinned(self.address)


def _give_back(lane: Lane, device: int, *, keep: bool) -> None:
    with _lock:
        if keep := keep and len(_idle[device]) < _KEPT:
            _idle[device].append(lane)
    if not keep:
        try:
            lane.close()
        except DeviceError:
            # The device has failed, and what made the lane is lost with its context.
            return


def _finish_quietly(lane: Lane) -> None:
    try:
        lane.finish()
    except DeviceError:
        return


def _fill(view: memoryview, descriptor: int, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise PeerLost("the source's memory ended before its region did")
        done += count


def _empty(buffer: _Buffer, destination: int, nbytes: int) -> None:
    buffer.left.wait()
    make_ready(destination, nbytes)
    ctypes.memmove(destination, buffer.address, nbytes)


def _forget() -> None:
    """In a forked child CUDA does not work."""
    _idle.clear()


_lock = threading.Lock()
_idle: dict[int, list[Lane]] = defaultdict(list)
os.register_at_fork(after_in_child=_forget)
