"""What staging needs of a device's driver, and the CUDA driver as that."""

from contextlib import AbstractContextManager
from typing import Protocol

from modelexpress.memory.cuda_copy import Stream, allocate_pinned, free_pinned
from modelexpress.memory.cuda_driver import driver


class StagingStream(Protocol):
    """Copies that are carried out one after the other, while the thread that asked for them does something else."""

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Enqueue a copy between the host and a device."""

    def finish(self) -> None:
        """Wait until everything that was enqueued is done."""

    def close(self) -> None:
        """Give it back; nothing is under way."""


class StagingDriver(Protocol):
    """A driver; every method may raise DeviceError, and all but `on` want a current device."""

    def on(self, device: int) -> AbstractContextManager[None]:
        """Make a device current on this thread for a block."""

    def stream(self) -> StagingStream:
        """Return a new stream."""

    def allocate_pinned(self, nbytes: int) -> int:
        """Return the address of page-locked host memory."""

    def free_pinned(self, address: int) -> None:
        """Give page-locked memory back; no copy from or to it is under way."""


class CudaStaging:
    """The CUDA driver of this machine.

    Raises:
        DeviceError: There is none, or no device.
    """

    def __init__(self) -> None:
        self._driver = driver()

    def on(self, device: int) -> AbstractContextManager[None]:
        return self._driver.on(device)

    def stream(self) -> StagingStream:
        return Stream()

    def allocate_pinned(self, nbytes: int) -> int:
        return allocate_pinned(nbytes)

    def free_pinned(self, address: int) -> None:
        free_pinned(address)
