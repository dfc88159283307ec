"""Finds workers that fell silent: marks them LOST, and deletes records long dead."""

import asyncio
import logging
import time
from collections.abc import Callable

from modelexpress.errors import StoreError
from modelexpress.registry.metrics import Metrics
from modelexpress.registry.store import Store

logger = logging.getLogger(__name__)


class Reaper:
    """Scans a store at an interval.

    Silence counts only while someone listened. A registry that was down or frozen for hours must not delete
    sources that live, so nothing is deleted until a whole heartbeat timeout after it began to listen (again).
    Marking needs no such care: the next heartbeat brings a lost worker back.

    Args:
        store: What is scanned.
        metrics: Shown what the store holds after each scan.
        interval: Seconds between scans.
        heartbeat_timeout: Seconds of silence after which a worker is lost.
        gc_timeout: Seconds of silence after which a dead record is deleted.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        interval: float,
        heartbeat_timeout: float,
        gc_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._interval = interval
        self._heartbeat_timeout = heartbeat_timeout
        self._gc_timeout = gc_timeout
        self._clock = clock
        self._listening_since = clock()
        self._scanned_at = clock()

    async def run(self) -> None:
        """Scan until cancelled; a store that fails is tried again at the next scan."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.scan(time.time_ns() // 1_000_000)
            except StoreError as error:
                logger.warning("the store could not be scanned for dead workers: %s", error)

    async def scan(self, now: int) -> None:
        """Scan once, at `now` milliseconds since the epoch.

        Raises:
            StoreError: The store failed.
        """
        clock = self._clock()
        if clock - self._scanned_at > self._interval + self._heartbeat_timeout:
            self._listening_since = clock
        self._scanned_at = clock
        lost = await self._store.mark_lost(now - round(self._heartbeat_timeout * 1000))
        if lost:
            logger.info("%d workers were not heard for %g s and are now STALE", lost, self._heartbeat_timeout)
        if clock - self._listening_since >= self._heartbeat_timeout:
            deleted = await self._store.delete_dead(now - round(self._gc_timeout * 1000))
            if deleted:
                logger.info("%d records of dead workers were deleted", deleted)
        self._metrics.show(await self._store.usage())
