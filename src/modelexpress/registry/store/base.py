"""The seam of the registry: where records live."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from modelexpress.wire.records import Publication, SourceQuery, SourceRef, SourceStatus, WorkerKey


class WorkerState(IntEnum):
    """State of a record. The protocol has one STALE; here it matters who said so.

    A worker that withdrew is gone until it publishes again. A worker that the reaper lost was merely not
    heard, and its next heartbeat brings it back.
    """

    UNKNOWN = 0
    INITIALIZING = 1
    READY = 2
    WITHDRAWN = 3
    LOST = 4

    @classmethod
    def told(cls, status: SourceStatus) -> "WorkerState":
        """Return the state that a worker's own word puts it in."""
        return cls(status.value)


DEAD = (WorkerState.WITHDRAWN, WorkerState.LOST)


class Update(Enum):
    """What became of a status update."""

    DONE = "done"
    NOT_FOUND = "no such record"
    WITHDRAWN = "the worker withdrew; publish again to bring the record back"


@dataclass(frozen=True)
class Liveness:
    """What changes about a record while it lives; `updated_at` in milliseconds since the epoch."""

    state: WorkerState
    updated_at: int
    source_load: float | None = None

    def status(self, stale_before: int) -> SourceStatus:
        """Return the status to tell: STALE also for a worker that was last heard before `stale_before`."""
        if self.state in DEAD or self.updated_at < stale_before:
            return SourceStatus.STALE
        return SourceStatus(self.state.value)


@dataclass(frozen=True)
class Usage:
    """What a store holds: records by state, and bytes of publications."""

    records: Mapping[WorkerState, int]
    nbytes: int


class Store(ABC):
    """Records by `WorkerKey`. Times are milliseconds since the epoch, by the caller's clock.

    Each method is atomic, also against other processes on the same store. Methods may be called from one
    event loop, any number at once; after `close()` none may be called.
    """

    @abstractmethod
    async def publish(self, publication: Publication, now: int) -> None:
        """Replace the record of a worker, whatever its state was; its state becomes what it publishes.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def update(self, key: WorkerKey, state: WorkerState, now: int, source_load: float | None = None) -> Update:
        """Set state and time of a record and nothing else; a load of None keeps the last one.

        A record that was withdrawn stays withdrawn.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def get(self, key: WorkerKey) -> tuple[Publication, Liveness] | None:
        """Return a record, or None where there is none.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def list_refs(self, query: SourceQuery, stale_before: int) -> list[SourceRef]:
        """Return the records that pass every filter, the ones heard last first, then by worker id.

        A status is compared with what `Liveness.status(stale_before)` tells. Model names compare without
        regard to case. A record without a training step passes no `min_training_step`. At most `MAX_LISTED`
        rows.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def mark_lost(self, stale_before: int) -> int:
        """Mark living records last heard before `stale_before` as LOST, keeping their time; return how many.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def delete_dead(self, stale_before: int) -> int:
        """Delete LOST and WITHDRAWN records last heard before `stale_before`; return how many.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def usage(self) -> Usage:
        """Return what the store holds.

        Raises:
            StoreError: The store failed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Write everything out and give files, threads and connections back. Closing twice is allowed."""
