"""The shelf: the materials that a worker offers, and the leases on them."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from modelexpress.errors import ConfigurationError, SourceBusy, SourceGone
from modelexpress.memory import Region
from modelexpress.peer.joining import Admission, Redirected
from modelexpress.peer.leases import Lease, LeaseTable
from modelexpress.peer.material import Exports, Material, Offer
from modelexpress.transfer.prefix import Prefix
from modelexpress.transport import Transport
from modelexpress.wire.peer import LeaseGrant
from modelexpress.wire.records import Asking, Member

LEASE_TTL = 30.0
"""Seconds that a lease outlives the last word of its reader; readers report every few seconds."""

MOST_LEASES = 64
"""Readers of one worker at once; more would only share its link."""

JOINING_SECONDS = 3.0
"""How long a reader waits here for a material that this worker has not begun to receive."""


class Shelf:
    """Materials by source id. Removing one ends its leases and leaves the others alone.

    Args:
        worker_id: Of the worker that offers them.
        transports: What each material is opened on.
        lease_ttl: Seconds that a lease outlives the last word of its reader.
        reader_limit: Readers of one material at once, as long as others can read from these.
        uplink: Bytes a second that all readers together may read; 0: no limit.
    """

    def __init__(
        self,
        worker_id: str,
        transports: Sequence[Transport],
        lease_ttl: float = LEASE_TTL,
        *,
        reader_limit: int = 1,
        uplink: int = 0,
    ) -> None:
        self.worker_id = worker_id
        self.leases = LeaseTable(lease_ttl, MOST_LEASES, self._revoke)
        self._transports = transports
        self._reader_limit = reader_limit
        self._uplink = uplink
        self._offers: dict[str, Offer] = {}
        self._expected: dict[str, Admission] = {}
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def export(self, regions: Sequence[Region]) -> Exports:
        """Open regions on every transport, for a material that will be added.

        Raises:
            TransportUnavailable: No transport can offer them.
        """
        return Exports.open(regions, self._transports)

    def add(self, material: Material, prefix: Prefix | None = None, exports: Exports | None = None) -> Offer:
        """Open a material to readers, complete or as far as `prefix` goes.

        Args:
            material: What is offered.
            prefix: How much of it is there; None: everything.
            exports: Its regions, where they are open already; owned from now on.

        Raises:
            ConfigurationError: This worker offers one under the same identity.
            TransportUnavailable: No transport can offer its memory.
        """
        source_id = material.identity.source_id
        with self._lock:
            self._refuse_second(source_id)
            admission = self._expected.pop(source_id, None) or self._admission()
            try:
                exports = exports or self.export(material.regions)
                prefix = prefix or Prefix(len(material.manifest.digests), complete=True)
                self._offers[source_id] = offer = Offer(material, prefix, admission, exports)
            finally:
                self._changed.notify_all()
        return offer

    def expect(self, source_id: str) -> None:
        """Announce a material that will be added soon: who asks for it waits a little.

        Raises:
            ConfigurationError: This worker offers one under the same identity.
        """
        with self._lock:
            self._refuse_second(source_id)
            self._expected[source_id] = self._admission()

    def asks(self, source_id: str, member: Member) -> None:
        """Note whom this worker itself asks for a material, so that the two do not wait for each other."""
        with self._lock:
            if (admission := self._admission_of(source_id)) is not None:
                admission.upstream = member.worker_id
                self._changed.notify_all()

    def reads_from(self, source_id: str, above: tuple[Member, ...]) -> None:
        """Note whom this worker itself reads a material from, and those above that, nearest first."""
        with self._lock:
            if (admission := self._admission_of(source_id)) is not None:
                admission.above = above

    def remove(self, source_id: str) -> None:
        """Withdraw a material. When this returns nobody reads its memory over a socket any more."""
        with self._lock:
            self._expected.pop(source_id, None)
            offer = self._offers.pop(source_id, None)
            self._changed.notify_all()
        if offer is not None:
            self.leases.release_all(source_id)
            offer.close()

    def close(self) -> None:
        """Withdraw every material."""
        for source_id in [*self._offers, *self._expected]:
            self.remove(source_id)

    def check_worker(self, worker_id: str) -> None:
        """Raise SourceGone unless this is the worker that the caller means."""
        if worker_id and worker_id != self.worker_id:
            raise SourceGone(
                f"worker {self.worker_id} answers here, not {worker_id[:64]}: the port was taken over by another "
                "process; ask the registry again"
            )

    def material(self, source_id: str) -> Material:
        """Return what is offered under a source id.

        Raises:
            SourceGone: Nothing is.
        """
        return self._offer(source_id).material

    def prefix(self, source_id: str) -> Prefix:
        """Return how much of a material is there.

        Raises:
            SourceGone: Nothing is offered under the source id.
        """
        return self._offer(source_id).prefix

    def lease(self, source_id: str, asking: Asking, host: str) -> LeaseGrant | Redirected:
        """Let a reader in, or name those whom it shall ask instead.

        Raises:
            SourceGone: Nothing is offered under the source id.
            SourceBusy: There are too many readers, or this worker has not begun to receive the material itself.
        """
        offer = self._awaited(source_id, asking.member)
        lease = Lease(source_id, asking.member, host[:256], offer.material.manifest.total_bytes)
        decided = self.leases.grant(lease, lambda readers: offer.admission.decide(asking, readers))
        if isinstance(decided, Redirected):
            return decided
        grant = offer.grant(lease.lease_id, self.leases.ttl)
        return replace(grant, bytes_per_second=self.share(), above=decided.above)

    def lease_anyway(self, source_id: str, reader: str) -> str:
        """Let in a reader that knows nothing of redirections, and return the lease.

        Raises:
            SourceGone: Nothing is offered under the source id.
            SourceBusy: There are too many readers, or this worker is still receiving: such a reader takes everything.
        """
        offer = self._offer(source_id)
        if not offer.prefix.complete:
            raise SourceBusy(f"worker {self.worker_id} is still receiving this itself: ask later")
        lease = Lease(source_id, Member(reader), reader, offer.material.manifest.total_bytes)
        self.leases.grant(lease)
        return offer.grant(lease.lease_id, self.leases.ttl).lease_id

    def share(self) -> int:
        """Return the bytes a second that each reader may read; 0: as many as it can."""
        return max(self._uplink // max(len(self.leases), 1), 1) if self._uplink else 0

    def _admission(self) -> Admission:
        return Admission(self._reader_limit, MOST_LEASES)

    def _admission_of(self, source_id: str) -> Admission | None:
        offer = self._offers.get(source_id)
        return offer.admission if offer is not None else self._expected.get(source_id)

    def _refuse_second(self, source_id: str) -> None:
        if source_id in self._offers:
            raise ConfigurationError(
                f"this worker already offers {source_id}: close that publication first, "
                "or publish other ranks from workers of their own"
            )

    def _offer(self, source_id: str) -> Offer:
        offer = self._offers.get(source_id)
        if offer is None:
            raise SourceGone(f"worker {self.worker_id} does not offer {source_id[:64]!r} (any more)")
        return offer

    def _awaited(self, source_id: str, reader: Member) -> Offer:
        """Return an offer, waiting for one that is expected; not where this worker in turn waits for the reader."""

        def decided() -> bool:
            expected = self._expected.get(source_id)
            return expected is None or expected.upstream == reader.worker_id

        with self._lock:
            self._changed.wait_for(decided, JOINING_SECONDS)
            if source_id in self._expected:
                raise SourceBusy(f"worker {self.worker_id} has not begun to receive this itself: ask another one")
        return self._offer(source_id)

    def _revoke(self, lease: Lease) -> None:
        offer = self._offers.get(lease.source_id)
        if offer is not None:
            offer.revoke(lease.lease_id)
