"""Which implementation digests which memory: the host's, or one for each device, made once in a process."""

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelexpress.errors import DeviceError
from modelexpress.transfer.digest import Column, digest_many

if TYPE_CHECKING:
    from modelexpress.transfer.digest_triton import DeviceDigests


class Pending(Protocol):
    """Digests on their way."""

    def result(self) -> Column:
        """Return the digests, when they are there; the memory must stay as it is until then.

        Raises:
            DeviceError: The device failed.
        """


class Digester(Protocol):
    """Digests memory of one kind, for any thread."""

    def start(self, addresses: Column, lengths: Column) -> Pending:
        """Return without waiting; addresses and lengths are as `digest_many` takes them.

        Raises:
            DeviceError: The device refused.
        """


def digester(device: int | None) -> Digester:
    """Return what digests the memory of a device, or of the host where it is None.

    The first call for a device loads its kernel: for some seconds the first time on a machine.

    Raises:
        DeviceError: The device cannot be used, or Triton is missing.
    """
    if device is None:
        return _HostDigester()
    with _lock:
        if device not in _made:
            _made[device] = _DeviceDigester(_make(device))
        return _made[device]


def prepare(device: int | None) -> None:
    """Let the kernel of a device load while something else is waited for. What fails is told by `digester`."""
    if device is not None and device not in _made:
        threading.Thread(target=_quietly, args=(device,), name="mx-digester", daemon=True).start()


@dataclass(frozen=True, eq=False)
class _Later:
    """Digests of host memory: computed by the thread that asks for the result."""

    addresses: Column
    lengths: Column

    def result(self) -> Column:
        return digest_many(self.addresses, self.lengths)


class _HostDigester:
    def start(self, addresses: Column, lengths: Column) -> Pending:
        return _Later(addresses, lengths)


class _DeviceDigester:
    def __init__(self, digests: "DeviceDigests") -> None:
        self._digests = digests
        self._busy = threading.Lock()

    def start(self, addresses: Column, lengths: Column) -> Pending:
        with self._busy:
            return self._digests.enqueue(addresses, lengths)


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
_made: dict[int, Digester] = {}
