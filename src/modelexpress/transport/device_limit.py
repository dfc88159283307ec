"""How fast the driver copies over the link of one reader: what `local` is compared with where a GPU is involved."""

import time
from contextlib import ExitStack

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_copy import Stream, allocate_device, allocate_pinned, free_device, free_pinned
from modelexpress.memory.cuda_driver import driver
from modelexpress.transport.base import LinkLimit

_BYTES = 256 << 20
_PINNED_BYTES = 32 << 20
_TIMES = 3


_known: dict[tuple[int, tuple[bytes, ...], bool], LinkLimit] = {}


def link_limit(
    device: int, peers: tuple[bytes, ...], source: tuple[int, int] | None, *, to_device: bool
) -> LinkLimit | None:
    """Return what `measure_limit` finds, measured once in a process for a device and the UUIDs of those it reads."""
    key = (device, peers, to_device)
    if key not in _known and (found := measure_limit(device, source, to_device=to_device)) is not None:
        _known[key] = found
    return _known.get(key)


def measure_limit(device: int, source: tuple[int, int] | None, *, to_device: bool) -> LinkLimit | None:
    """Return the best of three copies; None where there is no room for one, or the driver refuses.

    Args:
        device: Copies, and has the destination.
        source: Address and bytes of another device's memory as it is mapped here; None: the source is host memory.
        to_device: Whether the destination is device memory; else it is pinned host memory.
    """
    try:
        with driver().on(device), ExitStack() as undo:
            if source is not None and to_device:
                size = min(_BYTES, source[1])
                return _measure(source[0], _scratch(size, undo), size, "from the source's device")
            size = min(_PINNED_BYTES, source[1]) if source is not None else _PINNED_BYTES
            pinned = allocate_pinned(size)
            undo.callback(free_pinned, pinned)
            if source is None:
                return _measure(pinned, _scratch(size, undo), size, "from page-locked memory")
            return _measure(source[0], pinned, size, "to page-locked memory")
    except DeviceError:
        return None


def _scratch(nbytes: int, undo: ExitStack) -> int:
    address = allocate_device(nbytes)
    undo.callback(free_device, address)
    return address


def _measure(source: int, destination: int, nbytes: int, what: str) -> LinkLimit:
    """Copy about `_BYTES` at a time: a small range again and again, without a pause in between."""
    stream, repeats = Stream(), max(1, _BYTES // nbytes)
    try:
        best = 0.0
        for _ in range(_TIMES):
            started = time.perf_counter()
            for _ in range(repeats):
                stream.copy(destination, source, nbytes)
            stream.finish()
            best = max(best, repeats * nbytes / (time.perf_counter() - started))
    finally:
        stream.close()
    return LinkLimit(best, f"driver copy of {repeats * nbytes >> 20} MiB {what}")
