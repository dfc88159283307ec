"""Host memory that other processes of this host can map: one memfd, sealed against change from outside."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from collections.abc import Callable
from typing import ClassVar, Self

from modelexpress.errors import ConfigurationError
from modelexpress.memory.region import Region

ALIGNMENT = 64
"""Every block of an arena starts at a multiple of this many bytes: a cache line, and what torch aligns to."""

# The seal is younger than the constants of Python 3.11's fcntl module: include/uapi/linux/fcntl.h.
_SEAL_FUTURE_WRITE = 0x0010
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


def aligned(nbytes: int) -> int:
    """Return `nbytes` rounded up to the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class HostArena(mmap.mmap):
    """A range of shareable host memory, handed out block by block.

    Pages are taken when they are first written. The arena lives as long as somebody holds it or a view of it, so
    tensors made of its blocks keep it; readers that mapped it keep the pages. Nobody who receives the descriptor
    can write through it or change its size, so a reader is never hit by SIGBUS and the source's weights are never
    damaged from outside.

    Args:
        nbytes: Capacity in bytes; zero is allowed.
        name: Shown in /proc/PID/maps.
        fill: Writes to the descriptor before it is sealed: pages that are written to as a whole need no clearing. What
            it raises is raised.

    Raises:
        ConfigurationError: The capacity is negative or larger than the address space allows.
    """

    _live: ClassVar["weakref.WeakSet[HostArena]"] = weakref.WeakSet()
    region: Region
    _used: int
    _release: "weakref.finalize[[int], HostArena]"

    def __new__(cls, nbytes: int, name: str = "modelexpress", *, fill: Callable[[int], object] | None = None) -> Self:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, max(nbytes, 1) if nbytes >= 0 else nbytes)
            self = super().__new__(cls, descriptor, max(nbytes, 1), mmap.MAP_SHARED)
        except (OSError, ValueError, OverflowError) as error:
            os.close(descriptor)
            raise ConfigurationError(f"no arena of {nbytes} bytes can be made: {error}") from error
        try:
            if fill is not None:
                fill(descriptor)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:  # whatever it was: nobody else has the descriptor
            os.close(descriptor)
            raise
        with contextlib.suppress(OSError):
            # Fewer page faults, where the administrator lets shared memory have large pages.
            self.madvise(mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        self.region = Region(address, nbytes, descriptor)
        self._used = 0
        self._release = weakref.finalize(self, os.close, descriptor)
        cls._live.add(self)
        return self

    @classmethod
    def holding(cls, address: int, nbytes: int) -> "HostArena | None":
        """Return the open arena of this process that holds a range of addresses, or None."""
        for arena in cls._live:
            start = arena.region.address
            if start <= address and address + nbytes <= start + arena.region.nbytes:
                return arena
        return None

    def take(self, nbytes: int) -> memoryview:
        """Return the next block of `nbytes`, aligned to `ALIGNMENT`; it keeps the arena alive.

        Raises:
            ConfigurationError: The arena is full.
        """
        start, end = self._used, self._used + nbytes
        if end > self.region.nbytes:
            left = self.region.nbytes - start
            raise ConfigurationError(f"the arena has {left} bytes left, {nbytes} were asked for")
        self._used = aligned(end)
        return memoryview(self)[start:end]

    def close(self) -> None:
        """Give the descriptor back; the pages go with the last view. Closing twice is allowed."""
        self._live.discard(self)
        self._release()
        try:
            super().close()
        except BufferError:
            # Tensors still live in it: the mapping ends with the last of them.
            return

    def __exit__(self, *_: object) -> None:
        # That of mmap does not come by `close` above, and would fail for the sake of a live view.
        self.close()
