"""What a registry may hold, so that no caller fills its memory or its disk."""

import time
from dataclasses import dataclass

from modelexpress.errors import StoreFull
from modelexpress.registry.store import Store


@dataclass(frozen=True)
class Capacity:
    """How many records, and how many bytes of publications, a registry accepts."""

    records: int = 100_000
    nbytes: int = 4 << 30


class Quota:
    """Refuses publications to a store that is full.

    The store is asked at most once a second; in between, publications are added up. So several registries on
    one store can together exceed the capacity by what they take in a second.
    """

    _REFRESH_SECONDS = 1.0

    def __init__(self, store: Store, capacity: Capacity) -> None:
        self._store = store
        self._capacity = capacity
        self._records = 0
        self._nbytes = 0
        self._asked_at = float("-inf")

    async def admit(self, nbytes: int) -> None:
        """Count one publication of `nbytes` in.

        A replacement counts like a new record until the store is asked again.

        Raises:
            StoreFull: The registry holds as much as it accepts.
            StoreError: The store failed.
        """
        if time.monotonic() - self._asked_at > self._REFRESH_SECONDS:
            self._asked_at = time.monotonic()
            usage = await self._store.usage()
            self._records, self._nbytes = sum(usage.records.values()), usage.nbytes
        if self._records >= self._capacity.records or self._nbytes + nbytes > self._capacity.nbytes:
            raise StoreFull(
                f"the registry holds {self._records} records with {self._nbytes} bytes and accepts "
                f"{self._capacity.records} with {self._capacity.nbytes}: withdraw sources that are not "
                "needed, or wait until the dead ones are deleted"
            )
        self._records += 1
        self._nbytes += nbytes
