"""CUDA's virtual memory management, as far as memory made elsewhere is shared: export, import, map.

Source: CUDA driver API reference, "Virtual Memory Management".
"""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack

from modelexpress.memory.cuda_driver import Driver

_POSIX_FILE_DESCRIPTOR = ctypes.c_int(1)
_LOCATION_DEVICE = 1
_READ_WRITE = 3
_NO_FLAGS = ctypes.c_ulonglong(0)


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


def export_descriptor(driver: Driver, address: int) -> int:
    """Return a file descriptor of the physical memory mapped at a device address; the caller closes it.

    Raises:
        DeviceError: The memory was not created to be shared, or not by virtual memory management.
    """
    handle, descriptor = ctypes.c_uint64(), ctypes.c_int(-1)
    driver.call("cuMemRetainAllocationHandle", ctypes.byref(handle), ctypes.c_void_p(address))
    try:
        driver.call("cuMemExportToShareableHandle", ctypes.byref(descriptor), handle, _POSIX_FILE_DESCRIPTOR, _NO_FLAGS)
    finally:
        driver.call("cuMemRelease", handle)
    return descriptor.value


class MappedSideBySide:
    """Other processes' physical allocations in one range of addresses of a device.

    Args:
        driver: Of this process.
        parts: File descriptor and bytes of each allocation, in order; descriptors may be closed afterwards.
        device: The device that reads them.

    Raises:
        DeviceError: They cannot be mapped; nothing is left behind.
    """

    def __init__(self, driver: Driver, parts: Sequence[tuple[int, int]], device: int) -> None:
        total = ctypes.c_size_t(sum(nbytes for _, nbytes in parts))
        start = ctypes.c_uint64()
        with ExitStack() as undo:
            driver.call(
                "cuMemAddressReserve", ctypes.byref(start), total, ctypes.c_size_t(0), ctypes.c_uint64(0), _NO_FLAGS
            )
            undo.callback(driver.call, "cuMemAddressFree", start, total)
            position = start.value
            for descriptor, nbytes in parts:
                _map(driver, descriptor, position, nbytes)
                undo.callback(driver.call, "cuMemUnmap", ctypes.c_uint64(position), ctypes.c_size_t(nbytes))
                position += nbytes
            access = _Access(_Location(_LOCATION_DEVICE, device), _READ_WRITE)
            driver.call("cuMemSetAccess", start, total, ctypes.byref(access), ctypes.c_size_t(1))
            self._exit = undo.pop_all()
        self.address = start.value

    def close(self) -> None:
        """Unmap them and give the addresses back. Closing twice is allowed."""
        self._exit.close()


def _map(driver: Driver, descriptor: int, address: int, nbytes: int) -> None:
    handle = ctypes.c_uint64()
    driver.call(
        "cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(descriptor), _POSIX_FILE_DESCRIPTOR
    )
    try:
        driver.call(
            "cuMemMap", ctypes.c_uint64(address), ctypes.c_size_t(nbytes), ctypes.c_size_t(0), handle, _NO_FLAGS
        )
    finally:
        # The mapping keeps the memory; the handle is not needed any more.
        driver.call("cuMemRelease", handle)
