"""CUDA's virtual memory management, as far as memory made elsewhere is shared: export, import, map.

Source: CUDA driver API reference, "Virtual Memory Management".
"""

import ctypes

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_driver import Driver

_POSIX_FILE_DESCRIPTOR = 1
_LOCATION_DEVICE = 1
_READ_WRITE = 3


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


def export_descriptor(driver: Driver, address: int) -> int:
    """Return a file descriptor of the physical memory mapped at a device address; the caller closes it.

    Raises:
        DeviceError: The memory was not created to be shared, or not by virtual memory management.
    """
    handle = ctypes.c_uint64()
    driver.call("cuMemRetainAllocationHandle", ctypes.byref(handle), ctypes.c_void_p(address))
    try:
        descriptor = ctypes.c_int(-1)
        kind, flags = ctypes.c_int(_POSIX_FILE_DESCRIPTOR), ctypes.c_ulonglong(0)
        driver.call("cuMemExportToShareableHandle", ctypes.byref(descriptor), handle, kind, flags)
        return descriptor.value
    finally:
        driver.call("cuMemRelease", handle)


class ImportedMemory:
    """Another process's physical memory, mapped for one device of this process.

    Args:
        driver: Of this process.
        descriptor: As `export_descriptor` gave it; it may be closed afterwards.
        nbytes: Size of the whole physical allocation.
        device: The device that reads it.

    Raises:
        DeviceError: It cannot be mapped; nothing is left behind.
    """

    def __init__(self, driver: Driver, descriptor: int, nbytes: int, device: int) -> None:
        self._driver = driver
        self._nbytes = ctypes.c_size_t(nbytes)
        self._address = ctypes.c_uint64()
        handle = ctypes.c_uint64()
        kind = ctypes.c_int(_POSIX_FILE_DESCRIPTOR)
        driver.call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(descriptor), kind)
        try:
            self._map(handle, device)
        finally:
            # The mapping keeps the memory; the handle is not needed any more.
            driver.call("cuMemRelease", handle)

    @property
    def address(self) -> int:
        """Where it is mapped; 0 once it is closed."""
        return self._address.value

    def close(self) -> None:
        """Unmap it. Closing twice is allowed."""
        if self._address.value:
            self._driver.call("cuMemUnmap", self._address, self._nbytes)
            self._driver.call("cuMemAddressFree", self._address, self._nbytes)
            self._address = ctypes.c_uint64()

    def _map(self, handle: ctypes.c_uint64, device: int) -> None:
        none = ctypes.c_ulonglong(0)
        nothing = ctypes.c_size_t(0)
        self._driver.call(
            "cuMemAddressReserve", ctypes.byref(self._address), self._nbytes, nothing, ctypes.c_uint64(0), none
        )
        try:
            self._driver.call("cuMemMap", self._address, self._nbytes, nothing, handle, none)
        except DeviceError:
            self._driver.call("cuMemAddressFree", self._address, self._nbytes)
            self._address = ctypes.c_uint64()
            raise
        access = _Access(_Location(_LOCATION_DEVICE, device), _READ_WRITE)
        try:
            self._driver.call("cuMemSetAccess", self._address, self._nbytes, ctypes.byref(access), ctypes.c_size_t(1))
        except DeviceError:
            self.close()
            raise
