"""CUDA's virtual memory management of one device.

Source: CUDA driver API reference, "Virtual Memory Management".
"""

import ctypes
from functools import cached_property

from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_signatures import Access, AllocationProperties, Location
from modelexpress.memory.vmm import Physical, Vmm

POSIX_FILE_DESCRIPTOR = 1
_PINNED = 1
_LOCATION_DEVICE = 1
_READ_WRITE = 3
_MINIMUM_GRANULARITY = 0
_RDMA_WITH_VMM_SUPPORTED = 110  # CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED


class CudaVmm(Vmm):
    """Memory of one device, or of others as that device reaches it.

    Args:
        device: Has the memory that is created, and gets access to what is mapped.

    Raises:
        DeviceError: There is no such device.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self._driver = driver()
        location = Location(_LOCATION_DEVICE, self._driver.handle(device))
        self._access = Access(location, _READ_WRITE)
        self._properties = AllocationProperties(
            type=_PINNED, requestedHandleTypes=POSIX_FILE_DESCRIPTOR, location=location
        )
        # What network cards may read must be made so.
        self._properties.allocFlags.gpuDirectRDMACapable = self._driver.attribute(device, _RDMA_WITH_VMM_SUPPORTED)

    @cached_property
    def granularity(self) -> int:
        found = ctypes.c_size_t()
        self._driver.call(
            "cuMemGetAllocationGranularity", ctypes.byref(found), ctypes.byref(self._properties), _MINIMUM_GRANULARITY
        )
        return found.value

    @property
    def structures(self) -> tuple[bytes, bytes]:
        """CUmemAllocationProp and CUmemAccessDesc as they are handed to the driver."""
        return bytes(self._properties), bytes(self._access)

    def reserve(self, nbytes: int) -> int:
        address = ctypes.c_uint64()
        self._driver.call("cuMemAddressReserve", ctypes.byref(address), nbytes, 0, 0, 0)
        return address.value

    def free(self, address: int, nbytes: int) -> None:
        self._driver.call("cuMemAddressFree", address, nbytes)

    def create(self, nbytes: int) -> Physical:
        handle = ctypes.c_uint64()
        self._driver.call("cuMemCreate", ctypes.byref(handle), nbytes, ctypes.byref(self._properties), 0)
        return Physical(handle.value)

    def release(self, physical: Physical) -> None:
        self._driver.call("cuMemRelease", physical)

    def map(self, address: int, nbytes: int, physical: Physical) -> None:
        self._driver.call("cuMemMap", address, nbytes, 0, physical, 0)

    def unmap(self, address: int, nbytes: int) -> None:
        self._driver.call("cuMemUnmap", address, nbytes)

    def allow(self, address: int, nbytes: int) -> None:
        self._driver.call("cuMemSetAccess", address, nbytes, ctypes.byref(self._access), 1)

    def export(self, physical: Physical) -> int:
        descriptor = ctypes.c_int(-1)
        self._driver.call("cuMemExportToShareableHandle", ctypes.byref(descriptor), physical, POSIX_FILE_DESCRIPTOR, 0)
        return descriptor.value

    def import_physical(self, descriptor: int, nbytes: int) -> Physical:
        # The driver knows the size, and refuses to map more than there is.
        handle = ctypes.c_uint64()
        self._driver.call("cuMemImportFromShareableHandle", ctypes.byref(handle), descriptor, POSIX_FILE_DESCRIPTOR)
        return Physical(handle.value)


def physical_at(address: int) -> Physical:
    """Return the physical memory mapped at a device address; the caller releases it.

    Raises:
        DeviceError: It is not memory of virtual memory management.
    """
    handle = ctypes.c_uint64()
    driver().call("cuMemRetainAllocationHandle", ctypes.byref(handle), address)
    return Physical(handle.value)
