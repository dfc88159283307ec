"""Memory that is a file's: what is to be copied there can go into the file itself.

Pages that are written to as a whole are not cleared first, and none has to be mapped: that takes a third of the time.
"""

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Self

import numpy as np

_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_BUFFER_BYTES = 1 << 20
_libc = ctypes.CDLL(None)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_known: dict[int, tuple[int, int]] = {}
"""End and descriptor of each file that is mapped for writing, by its address."""


class FileMapping(mmap.mmap):
    """All of a file, mapped for reading and writing; whoever copies into it may write to the file instead.

    Args:
        path: The file.
        nbytes: Its size.

    Raises:
        OSError: It cannot be opened or mapped.
    """

    _address: int

    def __new__(cls, path: Path, nbytes: int) -> Self:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self = super().__new__(cls, descriptor, nbytes)
        except BaseException:  # nobody else has the descriptor; it is raised again
            os.close(descriptor)
            raise
        self._address = address_of(self)
        _known[self._address] = (self._address + nbytes, descriptor)
        return self

    def close(self) -> None:
        """Unmap it. Closing twice is allowed."""
        self._forget()
        super().close()

    def __del__(self) -> None:
        # Before it is unmapped: its addresses may be another's at once.
        self._forget()

    def _forget(self) -> None:
        if (found := _known.pop(self._address, None)) is not None:
            os.close(found[1])
        self._address = -1


def address_of(content: mmap.mmap) -> int:
    """Return where the first byte of a mapping is, as long as somebody holds it."""
    return int(np.frombuffer(content, np.uint8).ctypes.data)


def file_behind(address: int, nbytes: int) -> tuple[int, int] | None:
    """Return descriptor and offset of the file that a range of memory is a part of; None where it is no file's."""
    for start, (end, descriptor) in _known.copy().items():  # a copy: other threads map and unmap
        if start <= address and address + nbytes <= end:
            return descriptor, address - start
    return None


def send(out: int, position: int, descriptor: int, offset: int, nbytes: int) -> int:
    """Copy from one file into another, and return how many bytes that were: less at the end of what is read.

    Args:
        out: Where to; other threads may write to it at the same time.
        position: Of the first byte in it.
        descriptor: Where from.
        offset: Of the first byte in it.
        nbytes: How many.

    Raises:
        OSError: One of them fails.
    """
    # A position of its own: that of `out` is everybody's.
    own, done = os.open(f"/proc/self/fd/{out}", os.O_WRONLY | os.O_CLOEXEC), 0
    try:
        os.lseek(own, position, os.SEEK_SET)
        while done < nbytes and (count := os.sendfile(own, descriptor, offset + done, nbytes - done)):
            done += count
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        done += _through_a_buffer(out, position + done, descriptor, offset + done, nbytes - done)
    finally:
        os.close(own)
    return done


def start_writing(address: int, nbytes: int) -> None:
    """Let the disk begin with what was copied to a range of memory; nothing happens where it is no file's."""
    if (found := file_behind(address, nbytes)) is not None:
        _sync_file_range(*found, nbytes, _START_WRITING)


def _through_a_buffer(out: int, position: int, descriptor: int, offset: int, nbytes: int) -> int:
    """Do what `send` does, between files that the kernel does not copy between."""
    done = 0
    while done < nbytes and (data := os.pread(descriptor, min(_BUFFER_BYTES, nbytes - done), offset + done)):
        done += os.pwrite(out, data, position + done)
    return done
