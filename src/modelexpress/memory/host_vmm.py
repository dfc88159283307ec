"""Virtual memory management of host memory: memfd, and mmap at chosen addresses. What runs where there is no GPU."""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from modelexpress.errors import DeviceError
from modelexpress.memory.vmm import Physical, Vmm

_MAP_NORESERVE = 0x4000
_NO_ACCESS = 0  # PROT_NONE, which the module mmap lacks
_MAP_FIXED = 0x10
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_REMEDIES = {
    errno.ENOMEM: "free memory of the host or the container, or raise `ulimit -v` and vm.max_map_count",
    errno.ENFILE: "the host may open no more files: raise fs.file-max",
    errno.EFBIG: "raise `ulimit -f`",
}

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (*(ctypes.c_void_p, ctypes.c_size_t), *[ctypes.c_int] * 3, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mprotect = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


class HostVmm(Vmm):
    """Host memory; what stands for physical memory is the descriptor of a memfd that cannot change its size.

    Args:
        granularity: A multiple of the page size; that of a GPU is 2 MiB.
    """

    def __init__(self, granularity: int = mmap.PAGESIZE) -> None:
        if granularity <= 0 or granularity % mmap.PAGESIZE:
            raise DeviceError(f"a granularity of {granularity} bytes is no multiple of a page ({mmap.PAGESIZE})")
        self._granularity = granularity

    @property
    def granularity(self) -> int:
        return self._granularity

    def reserve(self, nbytes: int) -> int:
        self._check(nbytes)
        # More than is asked for, so that an aligned range is within; what is around it goes back at once.
        found = _mapped("reserve", None, nbytes + self._granularity, _NO_ACCESS, _RESERVED, -1)
        address = self.rounded(found)
        for start, end in ((found, address), (address + nbytes, found + nbytes + self._granularity)):
            if end > start:
                _done("free", _munmap(start, end - start))
        return address

    def free(self, address: int, nbytes: int) -> None:
        self._check(address, nbytes)
        _done("free", _munmap(address, nbytes))

    def create(self, nbytes: int) -> Physical:
        self._check(nbytes)
        with _told(f"make {nbytes} bytes"):
            descriptor = os.memfd_create("modelexpress-vmm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, nbytes)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            except OSError:
                os.close(descriptor)
                raise
        return Physical(descriptor)

    def release(self, physical: Physical) -> None:
        os.close(physical)

    def map(self, address: int, nbytes: int, physical: Physical) -> None:
        self._check(address, nbytes)
        if (size := os.fstat(physical).st_size) != nbytes:
            raise DeviceError(f"physical memory of {size} bytes cannot be mapped as {nbytes}: only as a whole")
        _mapped("map", address, nbytes, _NO_ACCESS, mmap.MAP_SHARED | _MAP_FIXED, physical)

    def unmap(self, address: int, nbytes: int) -> None:
        self._check(address, nbytes)
        _mapped("unmap", address, nbytes, _NO_ACCESS, _RESERVED | _MAP_FIXED, -1)

    def allow(self, address: int, nbytes: int) -> None:
        self._check(address, nbytes)
        _done("allow", _mprotect(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE))

    def export(self, physical: Physical) -> int:
        with _told("export memory"):
            return os.dup(physical)

    def import_physical(self, descriptor: int, nbytes: int) -> Physical:
        try:
            # Memory that its sender could shrink would kill whoever touches what is gone.
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError as error:
            raise DeviceError(f"the descriptor is no shared memory: {error}") from error
        if not sealed or os.fstat(descriptor).st_size != nbytes:
            raise DeviceError(f"the descriptor is not that of {nbytes} bytes of shared memory that keep their size")
        with _told("import memory"):
            return Physical(os.dup(descriptor))

    def _check(self, *numbers: int) -> None:
        for number in numbers:
            if number <= 0 or number % self._granularity:
                raise DeviceError(f"{number} is not a positive multiple of the granularity {self._granularity}")


def _mapped(what: str, address: int | None, nbytes: int, protection: int, flags: int, descriptor: int) -> int:
    found = _mmap(address, nbytes, protection, flags, descriptor, 0)
    if found is None or found == _FAILED:
        raise _refusal(f"{what} {nbytes} bytes", ctypes.get_errno())
    return int(found)


def _done(what: str, status: int) -> None:
    if status:
        raise _refusal(f"{what} memory", ctypes.get_errno())


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what the kernel refuses within a block. That the process has too many files open goes through as it is.

    What helps against that depends on who opens them.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise
        raise _refusal(what, error.errno or 0) from error


def _refusal(what: str, number: int) -> DeviceError:
    remedy = _REMEDIES.get(number)
    return DeviceError(f"the kernel does not {what}: {os.strerror(number)}" + (f" ({remedy})" if remedy else ""))
