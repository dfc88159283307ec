"""The functions of the CUDA driver that this package calls, with the types of their arguments.

Names and types are those of cuda.h of CUDA 13; every function returns a CUresult. Out-arguments, handles of contexts,
streams and events are pointers; device addresses are 64-bit integers.
"""

import ctypes
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

IPC_HANDLE_BYTES = 64
UUID_BYTES = 16

_OUT = _POINTER = ctypes.c_void_p
_ADDRESS = _HANDLE = ctypes.c_uint64
_SIZE = ctypes.c_size_t
_INT, _UNSIGNED, _FLAGS = ctypes.c_int, ctypes.c_uint, ctypes.c_ulonglong


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * IPC_HANDLE_BYTES),)


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class AllocationFlags(ctypes.Structure):
    """The member `allocFlags` of CUmemAllocationProp."""

    _fields_ = (
        ("compressionType", ctypes.c_ubyte),
        ("gpuDirectRDMACapable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requestedHandleTypes", ctypes.c_int),
        ("location", Location),
        ("win32HandleMetaData", ctypes.c_void_p),
        ("allocFlags", AllocationFlags),
    )


class CopyAttributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("srcAccessOrder", ctypes.c_int),
        ("srcLocHint", Location),
        ("dstLocHint", Location),
        ("flags", ctypes.c_uint),
    )


SIGNATURES: Mapping[str, tuple[type[Any], ...]] = MappingProxyType(
    {
        "cuInit": (_UNSIGNED,),
        "cuGetErrorString": (_INT, _OUT),
        "cuDeviceGetCount": (_OUT,),
        "cuDeviceGet": (_OUT, _INT),
        "cuDeviceGetUuid_v2": (_OUT, _INT),
        "cuDeviceGetAttribute": (_OUT, _INT, _INT),
        "cuDeviceTotalMem_v2": (_OUT, _INT),
        "cuDeviceCanAccessPeer": (_OUT, _INT, _INT),
        "cuDevicePrimaryCtxRetain": (_OUT, _INT),
        "cuCtxPushCurrent_v2": (_POINTER,),
        "cuCtxPopCurrent_v2": (_OUT,),
        "cuCtxSynchronize": (),
        "cuPointerGetAttributes": (_UNSIGNED, _POINTER, _POINTER, _ADDRESS),
        "cuMemGetAddressRange_v2": (_OUT, _OUT, _ADDRESS),
        "cuIpcGetMemHandle": (_OUT, _ADDRESS),
        "cuIpcOpenMemHandle_v2": (_OUT, IpcHandle, _UNSIGNED),
        "cuIpcCloseMemHandle": (_ADDRESS,),
        "cuMemAlloc_v2": (_OUT, _SIZE),
        "cuMemFree_v2": (_ADDRESS,),
        "cuMemAllocHost_v2": (_OUT, _SIZE),
        "cuMemFreeHost": (_POINTER,),
        "cuMemcpyAsync": (_ADDRESS, _ADDRESS, _SIZE, _POINTER),
        "cuMemcpyBatchAsync_v2": (_POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER),
        "cuStreamCreate": (_OUT, _UNSIGNED),
        "cuStreamDestroy_v2": (_POINTER,),
        "cuStreamSynchronize": (_POINTER,),
        "cuStreamWaitEvent": (_POINTER, _POINTER, _UNSIGNED),
        "cuEventCreate": (_OUT, _UNSIGNED),
        "cuEventDestroy_v2": (_POINTER,),
        "cuEventRecord": (_POINTER, _POINTER),
        "cuEventSynchronize": (_POINTER,),
        "cuEventElapsedTime": (_OUT, _POINTER, _POINTER),
        "cuMemGetAllocationGranularity": (_OUT, _POINTER, _INT),
        "cuMemAddressReserve": (_OUT, _SIZE, _SIZE, _ADDRESS, _FLAGS),
        "cuMemAddressFree": (_ADDRESS, _SIZE),
        "cuMemCreate": (_OUT, _SIZE, _POINTER, _FLAGS),
        "cuMemRelease": (_HANDLE,),
        "cuMemMap": (_ADDRESS, _SIZE, _SIZE, _HANDLE, _FLAGS),
        "cuMemUnmap": (_ADDRESS, _SIZE),
        "cuMemSetAccess": (_ADDRESS, _SIZE, _POINTER, _SIZE),
        "cuMemRetainAllocationHandle": (_OUT, _POINTER),
        "cuMemExportToShareableHandle": (_OUT, _HANDLE, _INT, _FLAGS),
        "cuMemImportFromShareableHandle": (_OUT, _POINTER, _INT),
    }
)
