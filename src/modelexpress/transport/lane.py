"""A lane: what one copying thread needs to reach device memory, made when it first does."""

import ctypes
import os
from contextlib import ExitStack

from modelexpress.errors import PeerLost
from modelexpress.memory import memory_view
from modelexpress.memory.cuda_driver import driver

STAGING_BYTES = 32 << 20
"""Two pinned buffers of this size for each thread: one is filled while the other one travels."""


class Lane:
    """A stream of one device, and pinned buffers between host descriptors and that device. For one thread.

    Args:
        device: The device whose memory is written.
    """

    def __init__(self, device: int) -> None:
        self._driver = driver()
        self._exit = ExitStack()
        self._exit.enter_context(self._driver.on(device))
        self._stream: ctypes.c_void_p = self._driver.create_stream()
        self._exit.callback(self._driver.destroy_stream, self._stream)
        self._buffers: list[int] = []
        self._filled = 0

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Enqueue a copy between addresses that the device reaches."""
        self._driver.copy(destination, source, nbytes, self._stream)

    def copy_file(self, destination: int, descriptor: int, offset: int, nbytes: int) -> None:
        """Read a descriptor's memory through the pinned buffers.

        Raises:
            PeerLost: The memory ends early.
        """
        done = 0
        while done < nbytes:
            size = min(STAGING_BYTES, nbytes - done)
            buffer = self._next_buffer()
            _fill(buffer, descriptor, offset + done, size)
            self._driver.copy(destination + done, buffer, size, self._stream)
            done += size

    def copy_out(self, destination: int, source: int, nbytes: int) -> None:
        """Copy device memory to ordinary host memory through the pinned buffers; it is in place when this returns."""
        for start in range(0, nbytes, STAGING_BYTES):
            size = min(STAGING_BYTES, nbytes - start)
            buffer = self._next_buffer()
            self._driver.copy(buffer, source + start, size, self._stream)
            self._driver.synchronise(self._stream)
            ctypes.memmove(destination + start, buffer, size)

    def finish(self) -> None:
        """Wait until everything that was enqueued is in place."""
        self._driver.synchronise(self._stream)

    def close(self) -> None:
        """Give stream and buffers back, when what was enqueued is done. Closing twice is allowed."""
        self._exit.close()

    def _next_buffer(self) -> int:
        if not self._buffers:
            for _ in range(2):
                buffer = self._driver.allocate_pinned(STAGING_BYTES)
                self._exit.callback(self._driver.free_pinned, buffer)
                self._buffers.append(buffer)
        elif self._filled % 2 == 0:
            # Both buffers may be on their way; what went before must have left them.
            self._driver.synchronise(self._stream)
        self._filled += 1
        return self._buffers[self._filled % 2]


def _fill(address: int, descriptor: int, offset: int, nbytes: int) -> None:
    done = 0
    while done < nbytes:
        count = os.preadv(descriptor, [memory_view(address + done, nbytes - done)], offset + done)
        if count == 0:
            raise PeerLost("the source's memory ended before its region did")
        done += count
