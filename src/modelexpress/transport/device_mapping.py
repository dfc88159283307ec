"""The regions of a source as this process maps them: in order, while what is mapped already is read."""

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Mapping

from modelexpress.errors import DeviceError, PeerLost, TransportError, TransportUnavailable
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_share import MappedRegion

MAPPING_THREADS = 1
"""Threads that map one source's regions; each call of the driver waits for the kernel's."""

MANY_REGIONS = 200
"""From so many on, what the driver takes to open them shows: 0.1 to 0.3 ms each, beside 50 ms for 20 GB."""

logger = logging.getLogger(__name__)


class DeviceMapping:
    """Maps device regions of one source for one device.

    Regions are mapped in the order of their numbers. Whoever wants to read one waits in `address` until it is there.

    Args:
        regions: By number; owned from now on.
        device: The device that reads.
    """

    def __init__(self, regions: Mapping[int, MappedRegion], device: int) -> None:
        self._regions = regions
        self._device = device
        self._left = iter(sorted(regions))
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._error: TransportError | None = None
        self._threads: list[threading.Thread] = []
        self._begun = time.perf_counter()
        self.seconds: float | None = None
        """From the first region to the last; None until that is mapped."""
        self._unmapped = len(regions)

    def map_first(self) -> None:
        """Map the beginning of the first region, which tells whether this device reaches the source's at all.

        Raises:
            DeviceError: It does not.
        """
        if self._regions:
            with driver().on(self._device):
                self._regions[min(self._regions)].advance()

    def start(self) -> None:
        """Map the rest in the background."""
        if all(region.ready >= region.nbytes for region in self._regions.values()):
            self.seconds = time.perf_counter() - self._begun
            return
        _live.add(self)
        count = min(MAPPING_THREADS, len(self._regions))
        self._threads = [threading.Thread(target=self._map, name=f"mx-map-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def address(self, region: int, end: int) -> int:
        """Return where a region begins here, once its bytes up to `end` can be read.

        Raises:
            TransportUnavailable: They cannot be mapped; what is mapped already can be read.
            TransportError: They never will be readable for another reason.
        """
        found = self._regions[region]
        if not self.covers(region, end):
            with self._lock:
                self._changed.wait_for(lambda: self.covers(region, end) or self._error is not None)
            if not self.covers(region, end):
                assert self._error is not None, "waiting ends with the bytes or with an error"
                raise type(self._error)(*self._error.args)
        return found.address

    def covers(self, region: int, end: int) -> bool:
        """Return whether the bytes of a region up to `end` can be read."""
        return self._regions[region].ready >= end

    def largest(self) -> tuple[int, int] | None:
        """Return address and bytes of the largest region, as far as it is mapped; None where nothing is."""
        found = max(self._regions.values(), key=lambda region: region.ready, default=None)
        return None if found is None or not found.ready else (found.address, found.ready)

    def advice(self) -> str:
        """Return what would make mapping faster; empty where little would."""
        if (count := len(self._regions)) < MANY_REGIONS:
            return ""
        return f"{count} allocations of the source were mapped one by one: in a CudaArena they are one (docs/gpu.md)"

    def stop(self) -> None:
        """Map nothing more; who waits is told. What is mapped stays."""
        self._fail(PeerLost("the reader was closed before the transfer was through"))

    def close(self) -> None:
        """Unmap everything; nothing reads it any more. Closing twice is allowed."""
        self.stop()
        for thread in self._threads:
            thread.join()
        _live.discard(self)
        with driver().on(self._device):
            for region in self._regions.values():
                try:
                    region.close()
                except DeviceError as error:
                    # The rest is given back all the same; the source must not wait for this process for ever.
                    logger.warning("device memory of a source cannot be unmapped: %s", error)

    def _map(self) -> None:
        try:
            with driver().on(self._device):
                while (region := self._next()) is not None:
                    while region.ready < region.nbytes and self._error is None:
                        region.advance()
                        with self._lock:
                            self._changed.notify_all()
                    self._count(region)
        except DeviceError as error:
            # Not this device's failure: another transport may bring what cannot be mapped.
            self._fail(TransportUnavailable(f"device {self._device} cannot map the source's memory: {error}"))
        except TransportError as error:
            self._fail(error)

    def _next(self) -> MappedRegion | None:
        with self._lock:
            number = next(self._left, None) if self._error is None else None
            return None if number is None else self._regions[number]

    def _count(self, region: MappedRegion) -> None:
        with self._lock:
            self._unmapped -= region.ready >= region.nbytes
            if not self._unmapped and self.seconds is None:
                self.seconds = time.perf_counter() - self._begun

    def _fail(self, error: TransportError) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            self._changed.notify_all()


def _stop_all() -> None:
    """A process must not end while one of its threads is in the driver."""
    for mapping in tuple(_live):
        mapping.stop()
        for thread in mapping._threads:
            thread.join(1)


_live: "weakref.WeakSet[DeviceMapping]" = weakref.WeakSet()
atexit.register(_stop_all)
