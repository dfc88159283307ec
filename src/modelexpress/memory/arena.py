"""Host memory that other processes of this host can map: one memfd, sealed before others get it."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from typing import ClassVar, Self

from modelexpress.errors import ConfigurationError
from modelexpress.memory.file_backed import forget, remember
from modelexpress.memory.region import Region

ALIGNMENT = 64
"""Every block of an arena starts at a multiple of this many bytes: a cache line, and what torch aligns to."""

# The seal is younger than the constants of Python 3.11's fcntl module: include/uapi/linux/fcntl.h.
_SEAL_FUTURE_WRITE = 0x0010
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_LAST_SEALS = _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


def aligned(nbytes: int) -> int:
    """Return `nbytes` rounded up to the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class HostArena(mmap.mmap):
    """A range of shareable host memory, handed out block by block.

    Pages are taken when they are first written: to the file behind it they are written as a whole, without being
    cleared first. The arena lives as long as somebody holds it or a view of it, so tensors made of its blocks keep it;
    readers that mapped it keep the pages. Its size never changes, and once it is sealed nobody can write through the
    descriptor, so a reader is never hit by SIGBUS and the source's weights are never damaged from outside.

    Args:
        nbytes: Capacity in bytes; zero is allowed.
        name: Shown in /proc/PID/maps.

    Raises:
        ConfigurationError: The capacity is negative or larger than the address space allows.
    """

    _live: ClassVar[dict[int, "weakref.ref[HostArena]"]] = {}
    region: Region
    descriptor: int
    _used: int
    _release: "weakref.finalize[[int, int], HostArena]"

    def __new__(cls, nbytes: int, name: str = "modelexpress") -> Self:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, max(nbytes, 1) if nbytes >= 0 else nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
            self = super().__new__(cls, descriptor, max(nbytes, 1), mmap.MAP_SHARED)
        except (OSError, ValueError, OverflowError) as error:
            os.close(descriptor)
            raise ConfigurationError(f"no arena of {nbytes} bytes can be made: {error}") from error
        with contextlib.suppress(OSError):
            # Fewer page faults, where the administrator lets shared memory have large pages.
            self.madvise(mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        self.region, self.descriptor = Region(address, nbytes, descriptor), descriptor
        self._used = 0
        self._release = weakref.finalize(self, _let_go, address, descriptor)
        cls._live[address] = weakref.ref(self)
        remember(address, nbytes, descriptor)
        return self

    @classmethod
    def holding(cls, address: int, nbytes: int) -> "HostArena | None":
        """Return the open arena of this process that holds a range of addresses, or None."""
        for start, known in list(cls._live.items()):  # a copy: other threads make and close arenas
            arena = known() if start <= address else None
            if arena is not None and address + nbytes <= start + arena.region.nbytes:
                return arena
        return None

    def seal(self) -> None:
        """See to it that nobody can write through the descriptor from now on, this process included.

        It is called before another process gets the descriptor; memory that is mapped already stays writable. Sealing
        twice is allowed.
        """
        forget(self.region.address, self.descriptor)
        with contextlib.suppress(PermissionError):  # it is sealed already
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _LAST_SEALS)

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
        """Give the memory back; where tensors still live in it, it goes with the last of them. Twice is allowed."""
        if self.closed:
            return
        address = self.region.address
        # Before it is unmapped: its addresses may be another's at once.
        known, writable = self._live.pop(address), forget(address, self.descriptor)
        try:
            super().close()
        except BufferError:
            self._live[address] = known
            if writable:
                remember(address, self.region.nbytes, self.descriptor)
        else:
            self._release()

    def __exit__(self, *_: object) -> None:
        # That of mmap does not come by `close` above, and would fail for the sake of a live view.
        self.close()


def _let_go(address: int, descriptor: int) -> None:
    forget(address, descriptor)
    if (known := HostArena._live.get(address)) is not None and known() is None:
        del HostArena._live[address]
    os.close(descriptor)
