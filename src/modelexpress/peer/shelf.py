"""The shelf: the materials that a worker offers, and the leases on them."""

import threading
from collections.abc import Sequence

from modelexpress.errors import ConfigurationError, SourceGone
from modelexpress.peer.leases import Lease, LeaseTable
from modelexpress.peer.material import Material, Offer
from modelexpress.transport import Transport
from modelexpress.wire.peer import LeaseGrant

LEASE_TTL = 30.0
"""Seconds that a lease outlives the last word of its reader; readers report every few seconds."""

MOST_LEASES = 64
"""Readers of one worker at once; more would only share its link."""


class Shelf:
    """Materials by source id. Removing one ends its leases and leaves the others alone.

    Args:
        worker_id: Of the worker that offers them.
        transports: What each material is opened on.
        lease_ttl: Seconds that a lease outlives the last word of its reader.
    """

    def __init__(self, worker_id: str, transports: Sequence[Transport], lease_ttl: float = LEASE_TTL) -> None:
        self.worker_id = worker_id
        self.leases = LeaseTable(lease_ttl, MOST_LEASES, self._revoke)
        self._transports = transports
        self._offers: dict[str, Offer] = {}
        self._lock = threading.Lock()

    def add(self, material: Material) -> Offer:
        """Open a material to readers.

        Raises:
            ConfigurationError: This worker offers one under the same identity.
            TransportUnavailable: No transport can offer its memory.
        """
        source_id = material.identity.source_id
        with self._lock:
            if source_id in self._offers:
                raise ConfigurationError(
                    f"this worker already offers {source_id}: close that publication first, "
                    "or publish other ranks from workers of their own"
                )
            self._offers[source_id] = offer = Offer.open(material, self._transports)
        return offer

    def remove(self, source_id: str) -> None:
        """Withdraw a material. When this returns nobody reads its memory over a socket any more."""
        with self._lock:
            offer = self._offers.pop(source_id, None)
        if offer is not None:
            self.leases.release_all(source_id)
            offer.close()

    def close(self) -> None:
        """Withdraw every material."""
        for source_id in list(self._offers):
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

    def lease(self, source_id: str, reader_id: str, reader_host: str) -> LeaseGrant:
        """Let a reader in.

        Raises:
            SourceGone: Nothing is offered under the source id.
            SourceBusy: There are too many readers.
        """
        offer = self._offer(source_id)
        lease = Lease(source_id, reader_id[:128], reader_host[:256], offer.material.manifest.total_bytes)
        self.leases.grant(lease)
        return offer.grant(lease.lease_id, self.leases.ttl)

    def _offer(self, source_id: str) -> Offer:
        offer = self._offers.get(source_id)
        if offer is None:
            raise SourceGone(f"worker {self.worker_id} does not offer {source_id[:64]!r} (any more)")
        return offer

    def _revoke(self, lease: Lease) -> None:
        offer = self._offers.get(lease.source_id)
        if offer is not None:
            offer.revoke(lease.lease_id)
