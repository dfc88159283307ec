"""Another process's memory, mapped to be read: only what can be neither shrunk nor missing is mapped."""

import fcntl
import mmap
import os

import numpy as np

from modelexpress.errors import TransportUnavailable


class MappedRegion:
    """A region of another process in this one's address space.

    Args:
        descriptor: A memfd; it may be closed afterwards.
        nbytes: How much of it to map.

    Raises:
        TransportUnavailable: Reading it could hit a missing page: it is no memfd, not sealed, or too small.
    """

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = 0
        self._map: mmap.mmap | None = None
        if (problem := unsafe(descriptor, nbytes)) is not None:
            raise TransportUnavailable(f"the source's memory is refused: {problem}")
        if nbytes:
            try:
                self._map = mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
            except OSError as error:
                raise TransportUnavailable(f"{nbytes} bytes cannot be mapped: {error}") from error
            self.address = int(np.frombuffer(self._map, np.uint8).ctypes.data)

    def close(self) -> None:
        """Unmap it; no thread may read it any more."""
        if self._map is not None:
            self._map.close()
            self._map = None


def unsafe(descriptor: int, nbytes: int) -> str | None:
    """Return why reading the first `nbytes` behind a descriptor could end in SIGBUS; None when it cannot."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return "it is no memfd"
    if not seals & fcntl.F_SEAL_SHRINK:
        return "it can be shrunk: F_SEAL_SHRINK is missing"
    size = os.fstat(descriptor).st_size
    if size < nbytes:
        return f"it has {size} bytes and should have {nbytes}"
    # Huge pages come from a pool that may be empty when a page is first touched.
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        return "it is not made of ordinary pages"
    return None
