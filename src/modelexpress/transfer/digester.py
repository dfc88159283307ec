"""Which implementation digests which memory: the host's, or one for each device, made once in a process."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from modelexpress.errors import DeviceError
from modelexpress.transfer.digest import Column, digest_many

if TYPE_CHECKING:
    from modelexpress.transfer.digest_triton import DeviceDigests

Digester = Callable[[Column, Column], Column]
"""Takes addresses and lengths in bytes, returns digests, as `digest_many` does."""


def digester(device: int | None) -> Digester:
    """Return what digests the memory of a device, or of the host where it is None.

    The first call for a device loads its kernel: for some seconds the first time on a machine.

    Raises:
        DeviceError: The device cannot be used, or Triton is missing.
    """
    if device is None:
        return digest_many
    with _lock:
        return _device_digester(device)


def prepare(device: int | None) -> None:
    """Let the kernel of a device load while something else is waited for. What fails is told by `digester`."""
    if device is not None:
        threading.Thread(target=_quietly, args=(device,), name="mx-digester", daemon=True).start()


@cache
def _device_digester(device: int) -> Digester:
    digests, busy = _make(device), threading.Lock()

    def compute(addresses: Column, lengths: Column) -> Column:
        with busy:
            return digests.enqueue(addresses, lengths).result()

    return compute


def _make(device: int) -> "DeviceDigests":
    try:
        from modelexpress.transfer.digest_triton import DeviceDigests
    except ModuleNotFoundError as error:
        raise DeviceError(f"digests of GPU memory need {error.name}: pip install 'modelexpress[cuda]'") from error
    return DeviceDigests(device)


def _quietly(device: int) -> None:
    with suppress(DeviceError):
        digester(device)


_lock = threading.Lock()
