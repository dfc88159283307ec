"""The CUDA driver, called directly: what frameworks do not offer, and nothing else.

Names and meanings are those of the CUDA driver API reference. Every call checks its status, and runs without the GIL.
Streams and memory to copy between are in cuda_copy.py, virtual memory management is in cuda_vmm.py.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_signatures import IPC_HANDLE_BYTES, SIGNATURES, UUID_BYTES, IpcHandle

_LAZY_ENABLE_PEER_ACCESS = 1
_MEMORY_TYPE_DEVICE = 2
# CU_POINTER_ATTRIBUTE_MEMORY_TYPE, _DEVICE_ORDINAL and _IS_LEGACY_CUDA_IPC_CAPABLE.
_ATTRIBUTES = (ctypes.c_int * 3)(2, 9, 10)


class Allocation(NamedTuple):
    """What the driver knows of one allocation.

    Args:
        address: First byte.
        nbytes: Size; of virtual memory management, one physical allocation as it is mapped.
        device: Whose memory it is.
        is_ipc_capable: Whether it can be exported as a whole by `export_ipc`.
    """

    address: int
    nbytes: int
    device: int
    is_ipc_capable: bool


_BRIEF = frozenset({"cuMemcpyAsync", "cuEventRecord", "cuStreamWaitEvent"})
"""Calls that return within microseconds keep the interpreter: a dozen threads that each let it go and take it again
after every call spend more time on that than on copying."""


class Driver:
    """libcuda of this machine.

    Raises:
        DeviceError: There is no driver, or it finds no device.
    """

    def __init__(self) -> None:
        try:
            library, brief = ctypes.CDLL("libcuda.so.1"), ctypes.PyDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceError(f"there is no CUDA driver on this machine: {error}") from error
        self._functions: dict[str, Callable[..., int]] = {}
        for name, types in SIGNATURES.items():
            # An older driver lacks what is newer; whoever calls that asks `has` first.
            if (function := getattr(brief if name in _BRIEF else library, name, None)) is not None:
                function.argtypes, function.restype = types, ctypes.c_int
                self._functions[name] = function
        self.call("cuInit", 0)
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def has(self, name: str) -> bool:
        """Return whether the driver has a function of that name."""
        return name in self._functions

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver.

        Raises:
            DeviceError: It did not return success; the message has its name and the driver's own words.
        """
        if status := self.status(name, *arguments):
            text = ctypes.c_char_p()
            self._functions["cuGetErrorString"](status, ctypes.byref(text))
            raise DeviceError(f"{name}: {(text.value or b'unknown error').decode()} (CUDA error {status})")

    def status(self, name: str, *arguments: object) -> int:
        """Call a function of the driver and return its status: 0 is success.

        Raises:
            DeviceError: The driver has no such function.
        """
        function = self._functions.get(name)
        if function is None:
            raise DeviceError(f"the CUDA driver has no function {name}: it is too old")
        return function(*arguments)

    def device_count(self) -> int:
        """Return how many devices this process sees."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def uuid(self, device: int) -> bytes:
        """Return what names a device in every process, whatever number it has there."""
        found = (ctypes.c_ubyte * UUID_BYTES)()
        self.call("cuDeviceGetUuid_v2", ctypes.byref(found), self.handle(device))
        return bytes(found)

    def can_access(self, device: int, peer: int) -> bool:
        """Return whether a device can reach the memory of another one."""
        found = ctypes.c_int()
        self.call("cuDeviceCanAccessPeer", ctypes.byref(found), self.handle(device), self.handle(peer))
        return bool(found.value)

    def total_bytes(self, device: int) -> int:
        """Return the size of a device's memory."""
        nbytes = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(nbytes), self.handle(device))
        return nbytes.value

    def attribute(self, device: int, number: int) -> int:
        """Return an attribute of a device; 0 where the driver does not know it."""
        found = ctypes.c_int()
        known = self.status("cuDeviceGetAttribute", ctypes.byref(found), number, self.handle(device)) == 0
        return found.value if known else 0

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make the primary context of a device, the one that frameworks use, current for a block."""
        self.call("cuCtxPushCurrent_v2", self.context(device))
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocation(self, address: int) -> Allocation:
        """Return the allocation that a device address lies in.

        Raises:
            DeviceError: The address belongs to no device.
        """
        device, capable = self._pointer(address)
        return Allocation(*self.range(address), device, capable)

    def range(self, address: int) -> tuple[int, int]:
        """Return address and bytes of the allocation that a device address lies in.

        Raises:
            DeviceError: The address belongs to no device.
        """
        base, nbytes = ctypes.c_uint64(), ctypes.c_size_t()
        arguments = ("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(nbytes), address)
        if self.status(*arguments):  # the driver may look among allocations of the current device only
            with self.on(self._pointer(address)[0]):
                self.call(*arguments)
        return base.value, nbytes.value

    def _pointer(self, address: int) -> tuple[int, bool]:
        """Return the device of an address, and whether its allocation can be shared by CUDA IPC."""
        kind, device, capable = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        pointers = (ctypes.c_void_p * 3)(*map(ctypes.addressof, (kind, device, capable)))
        self.call("cuPointerGetAttributes", 3, _ATTRIBUTES, pointers, address)
        if kind.value != _MEMORY_TYPE_DEVICE:
            raise DeviceError(f"address {address:#x} is not in the memory of a CUDA device")
        return device.value, bool(capable.value)

    def known_bytes(self, address: int) -> int | None:
        """Return the size of the allocation that starts at an address; None where the driver does not say."""
        nbytes = ctypes.c_size_t()
        known = self.status("cuMemGetAddressRange_v2", None, ctypes.byref(nbytes), address) == 0
        return nbytes.value if known else None

    def export_ipc(self, base: int) -> bytes | None:
        """Return the handle under which another process opens an allocation of cudaMalloc; None for other kinds."""
        handle = IpcHandle()
        if self.status("cuIpcGetMemHandle", ctypes.byref(handle), base):
            return None
        return bytes(handle.reserved)

    def open_ipc(self, handle: bytes) -> int:
        """Map another process's allocation and return its address here; the current device can read it then."""
        address = ctypes.c_uint64()
        structure = IpcHandle.from_buffer_copy(handle)
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), structure, _LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def close_ipc(self, address: int) -> None:
        """Give the mapping of another process's allocation back."""
        self.call("cuIpcCloseMemHandle", address)

    def context(self, device: int) -> ctypes.c_void_p:
        """Return the primary context of a device, which stays retained until the process ends."""
        if device not in self._contexts:
            context = ctypes.c_void_p()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.handle(device))
            self._contexts[device] = context
        return self._contexts[device]

    def handle(self, device: int) -> int:
        """Return the driver's name of a device that this process sees."""
        handle = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(handle), device)
        return handle.value


@functools.cache
def driver() -> Driver:
    """Return the driver of this process.

    Raises:
        DeviceError: There is none, or no device.
    """
    return Driver()


__all__ = ["IPC_HANDLE_BYTES", "UUID_BYTES", "Allocation", "Driver", "driver"]
