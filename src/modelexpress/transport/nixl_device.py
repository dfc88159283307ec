"""Device memory, as far as `nixl` deals with it: the current device, room for probes, and what is under destinations.

Only what is called for a device imports what reaches for the driver: hosts without one never do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from modelexpress.errors import DeviceError, TransportUnavailable

if TYPE_CHECKING:
    from modelexpress.memory import Region
    from modelexpress.transport.base import Run


@contextmanager
def made_current(device: int | None) -> Iterator[None]:
    """Make a device the current one of this thread for a block; None: there is none to make.

    Raises:
        TransportUnavailable: The device cannot be used.
    """
    with ExitStack() as stack:
        if device is not None:
            from modelexpress.memory.cuda_driver import driver

            try:
                stack.enter_context(driver().on(device))
            except DeviceError as error:
                raise TransportUnavailable(f"GPU {device} cannot be used: {error}") from error
        yield


def settle(device: int) -> None:
    """Wait until a device has done everything that this process gave it: copies of failed transfers, too.

    Raises:
        TransportUnavailable: The device cannot be used.
        DeviceError: The device failed.
    """
    with made_current(device):
        from modelexpress.memory.cuda_driver import driver

        driver().call("cuCtxSynchronize")


def allocate(device: int, nbytes: int) -> int:
    """Return the address of memory of a device which is never given back.

    Raises:
        TransportUnavailable: The device cannot be used, or that much is not free.
    """
    with made_current(device):
        from modelexpress.memory.cuda_copy import allocate_device

        if (address := allocate_device(nbytes)) is None:
            raise TransportUnavailable(f"GPU {device} has no {nbytes} bytes left to try whether it is reached")
        return address


class Ground:
    """The allocations of one device that destinations were found in so far: what is registered as a whole.

    Args:
        device: The device that destinations are on.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._regions: list[Region] = []  # in the order of their addresses, none within another

    def explore(self, runs: "list[Run]") -> None:
        """Find the allocations under the destinations of runs; none is empty.

        Raises:
            DeviceError: A destination is not in the memory of a device.
            TransportUnavailable: A destination is in that of another one.
        """
        unknown = [(run.address, run.nbytes) for run in runs if not self._known(run.address, run.nbytes)]
        if not unknown:
            return
        from modelexpress.memory.cuda_regions import regions_under

        for region in regions_under(unknown):
            if region.device != self._device:
                raise TransportUnavailable(f"a destination is on GPU {region.device}; bytes go to GPU {self._device}")
            self._add(region)

    def under(self, address: int) -> "Region":
        """Return the allocation that an explored address lies in."""
        return self._regions[bisect_right(self._regions, address, key=_begin) - 1]

    def _add(self, region: "Region") -> None:
        # Neighbours of virtual memory management are one region when they are found together: that one replaces them.
        first = last = bisect_left(self._regions, region.address, key=_begin)
        while last < len(self._regions) and _end(self._regions[last]) <= _end(region):
            last += 1
        self._regions[first:last] = [region]

    def _known(self, address: int, nbytes: int) -> bool:
        if not self._regions or address < self._regions[0].address:
            return False
        return address + nbytes <= _end(self.under(address))


def _begin(region: "Region") -> int:
    return region.address


def _end(region: "Region") -> int:
    return region.address + region.nbytes
