"""Mappings of other processes' cudaMalloc memory, each opened once in this process however many read it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelexpress.memory.cuda_driver import driver


@dataclass
class _Mapping:
    address: int
    users: int


_mappings: dict[tuple[int, bytes], _Mapping] = {}
_lock = threading.Lock()


@contextmanager
def opened(handle: bytes, device: int) -> Iterator[int]:
    """Yield the address at which another process's allocation is mapped for a device.

    The driver refuses to open a handle twice in one context, so readers share the mapping; the last one closes it.

    Raises:
        DeviceError: The handle does not open: the source is gone, is this very process, or is out of reach.
    """
    key = (device, handle)
    with _lock:
        mapping = _mappings.get(key)
        if mapping is None:
            with driver().on(device):
                mapping = _mappings[key] = _Mapping(driver().open_ipc(handle), 0)
        mapping.users += 1
    try:
        yield mapping.address
    finally:
        with _lock:
            mapping.users -= 1
            if not mapping.users:
                del _mappings[key]
                with driver().on(device):
                    driver().close_ipc(mapping.address)
