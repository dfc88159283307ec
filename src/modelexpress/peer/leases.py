"""Leases: who may read which material, for how long, and how far they are."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelexpress.errors import LeaseExpired, SourceBusy
from modelexpress.peer.joining import Admitted, Reading, Redirected
from modelexpress.wire.records import Member, ReaderStatus

Decide = Callable[[list[Reading]], Admitted | Redirected]
"""Given the readers of a material, says whether another one may read, too."""


@dataclass
class Lease:
    """One reader's permission to read one material, renewed by hearing of the reader."""

    source_id: str
    reader: Member
    reader_host: str
    total_bytes: int
    lease_id: str = field(default_factory=lambda: secrets.token_hex(16))
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    verified_bytes: int = 0
    verified_chunks: int = 0
    cancel_stream: Callable[[], object] | None = None


class LeaseTable:
    """The leases of one worker.

    Args:
        ttl: Seconds after which a lease ends when nothing was heard of its reader.
        most: Leases at once.
        ended: Called with every lease that ends, in whatever way, outside the table's lock.
    """

    def __init__(self, ttl: float, most: int, ended: Callable[[Lease], None]) -> None:
        self.ttl = ttl
        self._most = most
        self._ended = ended
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, lease: Lease, decide: Decide | None = None) -> Admitted | Redirected:
        """Take a lease in, unless `decide` sends its reader on; return what it decided.

        Raises:
            SourceBusy: As many as are allowed are running.
        """
        self.expire()
        with self._lock:
            if len(self._leases) >= self._most:
                raise SourceBusy(f"this worker already serves {self._most} readers: try another source, or later")
            others = [held for held in self._leases.values() if held.source_id == lease.source_id]
            answer = decide([Reading(held.reader, held.verified_chunks) for held in others]) if decide else Admitted()
            if isinstance(answer, Admitted):
                self._leases[lease.lease_id] = lease
            return answer

    def get(self, lease_id: str) -> Lease:
        """Return a running lease and renew it.

        Raises:
            LeaseExpired: It ended, or never was.
        """
        self.expire()
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                raise LeaseExpired("the lease has ended: acquire a new one")
            lease.heard = time.monotonic()
            return lease

    @contextmanager
    def streaming(self, lease_id: str, cancel: Callable[[], object]) -> Iterator[Lease]:
        """Yield a running lease while an answer is streamed to its reader; `cancel` is called if the lease ends.

        Raises:
            LeaseExpired: It ended, or never was.
            SourceBusy: Another answer is being streamed: a reader that takes none must not hold every thread.
        """
        lease = self.get(lease_id)
        with self._lock:
            if lease.cancel_stream is not None:
                raise SourceBusy("this lease reads something already: one stream at a time")
            lease.cancel_stream = cancel
        try:
            yield lease
        finally:
            lease.cancel_stream = None

    def release(self, lease_id: str) -> None:
        """End a lease; one that has ended already is ignored."""
        with self._ending() as gone:
            gone.append(self._leases.pop(lease_id, None))

    def release_all(self, source_id: str) -> None:
        """End every lease on one material."""
        self._end_where(lambda lease: lease.source_id == source_id)

    def expire(self) -> None:
        """End the leases whose readers were not heard of for the time to live."""
        oldest = time.monotonic() - self.ttl
        self._end_where(lambda lease: lease.heard < oldest)

    def readers(self, source_id: str = "") -> list[ReaderStatus]:
        """Return how far each reader is, of one material or of all."""
        self.expire()
        now = time.monotonic()
        with self._lock:
            return [
                ReaderStatus(
                    lease.source_id,
                    lease.reader.worker_id,
                    lease.reader_host,
                    lease.verified_bytes,
                    lease.total_bytes,
                    now - lease.started,
                    lease.reader.endpoint,
                )
                for lease in self._leases.values()
                if source_id in ("", lease.source_id)
            ]

    def _end_where(self, condition: Callable[[Lease], bool]) -> None:
        with self._ending() as gone:
            for lease in [lease for lease in self._leases.values() if condition(lease)]:
                gone.append(self._leases.pop(lease.lease_id))

    @contextmanager
    def _ending(self) -> Iterator[list[Lease | None]]:
        gone: list[Lease | None] = []
        with self._lock:
            yield gone
        for lease in gone:
            if lease is not None:
                if (cancel := lease.cancel_stream) is not None:
                    cancel()
                self._ended(lease)
