"""The CUDA driver, called directly: what frameworks do not offer, and nothing else.

Names and signatures are those of the CUDA driver API reference, "Memory Management" and "Stream Management".
Every call checks its status. Calls run without the GIL.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

from modelexpress.errors import DeviceError

IPC_HANDLE_BYTES = 64
_NON_BLOCKING_STREAM = 1
_LAZY_ENABLE_PEER_ACCESS = 1
_POINTER_MEMORY_TYPE = 2
_POINTER_DEVICE_ORDINAL = 9
_MEMORY_TYPE_DEVICE = 2
_NO_DEVICE_STATUS = (1, 100, 101)  # an address that CUDA does not know, no device, no such device


class _IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * IPC_HANDLE_BYTES),)


class Driver:
    """libcuda of this machine.

    Raises:
        DeviceError: There is no driver, or it finds no device.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceError(f"there is no CUDA driver on this machine: {error}") from error
        self.call("cuInit", ctypes.c_uint(0))
        self._handles: dict[int, ctypes.c_int] = {}
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver.

        Raises:
            DeviceError: It did not return success; the message has its name and the driver's own words.
        """
        status = self.status(name, *arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            raise DeviceError(f"{name}: {(text.value or b'unknown error').decode()} (CUDA error {status})")

    def status(self, name: str, *arguments: object) -> int:
        """Call a function of the driver and return its status: 0 is success."""
        return int(getattr(self._library, name)(*arguments))

    def device_count(self) -> int:
        """Return how many devices this process sees."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make the primary context of a device, the one that frameworks use, current for a block."""
        self.call("cuCtxPushCurrent_v2", self._primary_context(device))
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def device_of(self, address: int) -> int | None:
        """Return the device that an address belongs to; None for host memory."""
        kind, device = ctypes.c_uint(), ctypes.c_int()
        pointer = ctypes.c_uint64(address)
        status = self.status("cuPointerGetAttribute", ctypes.byref(kind), _POINTER_MEMORY_TYPE, pointer)
        if status in _NO_DEVICE_STATUS or kind.value != _MEMORY_TYPE_DEVICE:
            return None
        self.call("cuPointerGetAttribute", ctypes.byref(device), _POINTER_DEVICE_ORDINAL, pointer)
        return device.value

    def allocation(self, address: int) -> tuple[int, int]:
        """Return address and bytes of the allocation that a device address lies in."""
        base, nbytes = ctypes.c_uint64(), ctypes.c_size_t()
        self.call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(nbytes), ctypes.c_uint64(address))
        return base.value, nbytes.value

    def is_ipc_capable(self, base: int) -> bool:
        """Return whether an allocation can be exported as a whole by `export_ipc`."""
        return self.status("cuIpcGetMemHandle", ctypes.byref(_IpcHandle()), ctypes.c_uint64(base)) == 0

    def export_ipc(self, base: int) -> bytes:
        """Return the handle under which another process opens an allocation of cudaMalloc as a whole."""
        handle = _IpcHandle()
        self.call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(base))
        return bytes(handle.reserved)

    def open_ipc(self, handle: bytes) -> int:
        """Map another process's allocation and return its address here; the current device can read it then."""
        address = ctypes.c_uint64()
        structure = _IpcHandle.from_buffer_copy(handle)
        flags = ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), structure, flags)
        return address.value

    def close_ipc(self, address: int) -> None:
        """Give the mapping of another process's allocation back."""
        self.call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def create_stream(self) -> ctypes.c_void_p:
        """Return a stream of the current device that does not wait for the default one."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING_STREAM))
        return stream

    def destroy_stream(self, stream: ctypes.c_void_p) -> None:
        """Give a stream back; what it holds is finished first by the device."""
        self.call("cuStreamDestroy_v2", stream)

    def copy(self, destination: int, source: int, nbytes: int, stream: ctypes.c_void_p) -> None:
        """Enqueue a copy in any direction: host, device, peer device."""
        self.call(
            "cuMemcpyAsync",
            ctypes.c_uint64(destination),
            ctypes.c_uint64(source),
            ctypes.c_size_t(nbytes),
            stream,
        )

    def synchronise(self, stream: ctypes.c_void_p) -> None:
        """Wait until a stream has done everything that was enqueued on it."""
        self.call("cuStreamSynchronize", stream)

    def allocate_pinned(self, nbytes: int) -> int:
        """Return the address of page-locked host memory, which devices copy from and to at full speed."""
        address = ctypes.c_void_p()
        self.call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value or 0

    def free_pinned(self, address: int) -> None:
        """Give page-locked memory back."""
        self.call("cuMemFreeHost", ctypes.c_void_p(address))

    def _handle(self, device: int) -> ctypes.c_int:
        if device not in self._handles:
            handle = ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
            self._handles[device] = handle
        return self._handles[device]

    def _primary_context(self, device: int) -> ctypes.c_void_p:
        if device not in self._contexts:
            context = ctypes.c_void_p()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle(device))
            self._contexts[device] = context
        return self._contexts[device]


@functools.cache
def driver() -> Driver:
    """Return the driver of this process.

    Raises:
        DeviceError: There is none, or no device.
    """
    return Driver()


def device_of(address: int) -> int | None:
    """Return the device that an address belongs to; None for host memory, and where there is no CUDA."""
    try:
        return driver().device_of(address)
    except DeviceError:
        return None
