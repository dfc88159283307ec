"""Mappings of other processes' cudaMalloc memory, each opened once in this process however many read it."""

import threading
from dataclasses import dataclass, field

from modelexpress.memory.cuda_driver import driver


@dataclass
class _Mapping:
    """One handle: held by `users`; its address while it is open. `turn` lets one thread at a time open or close it."""

    users: int = 0
    address: int | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)


_mappings: dict[tuple[int, bytes], _Mapping] = {}
_lock = threading.Lock()  # of the table and the counts; never held during a call of the driver


def open_shared(handle: bytes, device: int) -> int:
    """Return the address at which another process's allocation is mapped for a device, whose context is current.

    The driver refuses to open a handle twice in one context, so readers share the mapping. Each call is undone by
    one of `close_shared`; different handles may be opened by several threads at once.

    Raises:
        DeviceError: The handle does not open: the source is gone, is this very process, or is out of reach.
    """
    key = (device, handle)
    with _lock:
        mapping = _mappings.setdefault(key, _Mapping())
        mapping.users += 1
    with mapping.turn:
        if mapping.address is None:
            try:
                mapping.address = driver().open_ipc(handle)
            finally:
                if mapping.address is None:
                    _leave(key, mapping)
        return mapping.address


def close_shared(handle: bytes, device: int) -> None:
    """Give a mapping back; the last user's call closes it. The device's context is current.

    Raises:
        DeviceError: The driver refused; the mapping is forgotten all the same.
    """
    key = (device, handle)
    mapping = _mappings[key]
    with mapping.turn:
        # It stays in the table: who opens the handle meanwhile waits for this turn to end.
        if mapping.users == 1 and mapping.address is not None:
            address, mapping.address = mapping.address, None
            try:
                driver().close_ipc(address)
            finally:
                _leave(key, mapping)
        else:
            _leave(key, mapping)


def _leave(key: tuple[int, bytes], mapping: _Mapping) -> None:
    with _lock:
        mapping.users -= 1
        if not mapping.users:
            del _mappings[key]
