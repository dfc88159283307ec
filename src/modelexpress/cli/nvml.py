"""The GPUs of this host as NVIDIA's management library knows them: no context is made, and no GPU wakes up for it.

Names are those of the NVML API reference. The library is called directly, so that nothing needs to be installed.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

_NAME_BYTES = 96
_MOST_LINKS = 18
_ACTIVE = 1
_READ, _NVLINK = 0, 2  # NVML_P2P_CAPS_INDEX_READ and _NVLINK
_OK = 0  # NVML_SUCCESS and NVML_P2P_STATUS_OK


class Link(Enum):
    """How two GPUs reach each other's memory."""

    NVLINK = "NVLink"
    PCIE = "PCIe peer access"
    NONE = "no peer access"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, its memory in bytes, and how many of its NVLinks are up."""

    name: str
    nbytes: int
    nvlinks: int


@dataclass(frozen=True)
class Survey:
    """Every GPU of the host, by NVML's index, and the link of each two of them."""

    driver: str
    gpus: tuple[Gpu, ...]
    links: tuple[tuple[int, int, Link], ...]


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def survey() -> Survey | None:
    """Return what is there; None without NVIDIA's driver, or without a GPU that it knows."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        with _started(library) as handles:
            gpus = tuple(_gpu(library, handle) for handle in handles)
            pairs = combinations(range(len(handles)), 2)
            links = tuple((a, b, _link(library, handles[a], handles[b], gpus[a], gpus[b])) for a, b in pairs)
            return Survey(_text(library.nvmlSystemGetDriverVersion), gpus, links) if gpus else None
    except (OSError, AttributeError):
        return None  # no such library, or an older one without such a function


@contextmanager
def _started(library: ctypes.CDLL) -> Iterator[list[ctypes.c_void_p]]:
    """Yield the handles of the GPUs; none where the driver does not work."""
    if library.nvmlInit_v2() != _OK:
        yield []
        return
    try:
        count = ctypes.c_uint()
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        handles = [ctypes.c_void_p() for _ in range(count.value)]
        found = (library.nvmlDeviceGetHandleByIndex_v2(n, ctypes.byref(handle)) for n, handle in enumerate(handles))
        yield [handle for handle, status in zip(handles, found, strict=True) if status == _OK]
    finally:
        library.nvmlShutdown()


def _gpu(library: ctypes.CDLL, handle: ctypes.c_void_p) -> Gpu:
    memory, state, active = _Memory(), ctypes.c_int(), 0
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    for link in range(_MOST_LINKS):
        status = library.nvmlDeviceGetNvLinkState(handle, ctypes.c_uint(link), ctypes.byref(state))
        active += status == _OK and state.value == _ACTIVE
    return Gpu(_text(library.nvmlDeviceGetName, handle), memory.total, active)


def _link(library: ctypes.CDLL, one: ctypes.c_void_p, other: ctypes.c_void_p, left: Gpu, right: Gpu) -> Link:
    readable, linked = ctypes.c_int(-1), ctypes.c_int(-1)
    if library.nvmlDeviceGetP2PStatus(one, other, _READ, ctypes.byref(readable)) != _OK:
        return Link.UNKNOWN
    if readable.value != _OK:
        return Link.NONE
    if library.nvmlDeviceGetP2PStatus(one, other, _NVLINK, ctypes.byref(linked)) != _OK:
        # A machine that does not say: where both have links that are up, a switch is behind them.
        return Link.NVLINK if left.nvlinks and right.nvlinks else Link.PCIE
    return Link.NVLINK if linked.value == _OK else Link.PCIE


def _text(function: "ctypes._NamedFuncPointer", *arguments: object) -> str:
    text = ctypes.create_string_buffer(_NAME_BYTES)
    return text.value.decode(errors="replace") if function(*arguments, text, _NAME_BYTES) == _OK else "unknown"
