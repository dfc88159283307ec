"""Memory that is a file's: what is to be copied there can go into the file itself.

Pages that are written to as a whole are not cleared first, and none has to be mapped: that takes a third of the time.
"""

import ctypes
import errno
import mmap
import os
import weakref
from bisect import bisect_right
from pathlib import Path

import numpy as np

_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_libc = ctypes.CDLL(None)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_known: tuple[tuple[int, int, int], ...] = ()
"""Address, end and descriptor of each file, by address. Replaced, never changed: threads look at it without a lock."""


def address_of(content: mmap.mmap) -> int:
    """Return where the first byte of a mapping is, as long as somebody holds it."""
    return int(np.frombuffer(content, np.uint8).ctypes.data)


def back_with_file(content: mmap.mmap, path: Path) -> None:
    """Let those who copy into a mapping write to its file instead, as long as the mapping lives.

    Args:
        content: All of the file, mapped shared.
        path: The file.

    Raises:
        OSError: The file cannot be opened for writing.
    """
    global _known
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    address = address_of(content)
    entry = (address, address + len(content), descriptor)
    _known = tuple(sorted((*_known, entry)))
    weakref.finalize(content, _forget, entry).atexit = False


def file_behind(address: int, nbytes: int) -> tuple[int, int] | None:
    """Return descriptor and offset of the file that a range of memory is a part of; None where it is no file's."""
    files = _known
    position = bisect_right(files, address, key=lambda entry: entry[0]) - 1
    if position < 0 or address + nbytes > files[position][1]:
        return None
    return files[position][2], address - files[position][0]


def send(out: int, position: int, descriptor: int, offset: int, nbytes: int) -> int:
    """Copy from one file into another within the kernel, and return how many bytes that were: less at the file's end.

    Args:
        out: Where to; other threads may write to it at the same time.
        position: Of the first byte in it.
        descriptor: Where from.
        offset: Of the first byte in it.
        nbytes: How many.

    Raises:
        OSError: One of them fails; EINVAL: the kernel cannot copy between these two.
    """
    # A position of its own: that of `out` is everybody's.
    own, done = os.open(f"/proc/self/fd/{out}", os.O_WRONLY | os.O_CLOEXEC), 0
    try:
        os.lseek(own, position, os.SEEK_SET)
        while done < nbytes and (count := os.sendfile(own, descriptor, offset + done, nbytes - done)):
            done += count
    finally:
        os.close(own)
    return done


def can_send(error: OSError) -> bool:
    """Return whether `send` failed for another reason than that the kernel cannot do it."""
    return error.errno not in (errno.EINVAL, errno.ENOSYS)


def start_writing(address: int, nbytes: int) -> None:
    """Let the disk begin with what was copied to a range of memory; nothing happens where it is no file's."""
    if (found := file_behind(address, nbytes)) is not None:
        _sync_file_range(*found, nbytes, _START_WRITING)


def _forget(entry: tuple[int, int, int]) -> None:
    global _known
    _known = tuple(each for each in _known if each != entry)
    os.close(entry[2])
