"""Reading from one source: DESIGN.md, section 3, steps 3 to 6, once the lease is there."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelexpress.errors import TransportUnavailable
from modelexpress.peer import Upstream
from modelexpress.settings import Settings
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Addresses, Pieces, chunk_numbers
from modelexpress.transfer.plan import Plan, make_plan
from modelexpress.transfer.pull import Feed, pull
from modelexpress.transport import Opened
from modelexpress.weights.connecting import Connections, Connector
from modelexpress.weights.relaying import Relaying
from modelexpress.weights.report import COPY, Journal, Stage
from modelexpress.wire.records import FileSpec

DEVICE_BATCH_BYTES = 512 << 20
"""Bytes that travel and are checked together on a GPU: launching a check costs as much time as 0.2 GB of copying."""

DEVICE_FIRST_BYTES = 128 << 20
"""Bytes of the first batch on a GPU, so that checking, and whoever reads from here, begin early."""

_EVEN_SECONDS = 0.02
"""Where a source limits the rate, bytes for so long are asked for together."""

_WORTH_MEASURING = 64 << 20
"""Bytes of a load below which the limit of the link is not measured: that would take longer than the load."""

Destinations = Mapping[int | None, Addresses]
"""For each CUDA device, and None for the host, where the tensors go that belong there."""
ReadFile = Callable[[FileSpec], bytes]


class Room(Protocol):
    """Where a source's bytes go."""

    @property
    def devices(self) -> frozenset[int | None]:
        """The CUDA devices that may be among the destinations; None stands for the host."""

    @property
    def staged(self) -> frozenset[str]:
        """Names of the tensors whose bytes do not outlive a change of the source."""

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        """Return where each tensor is copied to.

        Raises:
            ManifestMismatch: The source does not hold what is wanted here; nothing was changed.
            ArtifactError: What it holds may not be taken from it.
        """


@dataclass(frozen=True)
class Reading:
    """Fills a room from one source.

    Args:
        room: Where the bytes go.
        ledger: What earlier sources delivered.
        journal: What happens is written here.
        settings: Timeouts and sizes.
        connector: Opens sources.
        passing_on: Serves what has arrived to others; None: nobody does.
        verify: False skips the digests.
    """

    room: Room
    ledger: Ledger
    journal: Journal
    settings: Settings
    connector: Connector
    passing_on: Relaying | None
    verify: bool

    def run(self, upstream: Upstream) -> None:
        """Read everything that the ledger lacks.

        Raises:
            PeerError: The source said no, or is gone.
            TransportError: The bytes could not be moved.
            TransferError: The source holds something else than is wanted, or than it says.
            ArtifactError: What it holds may not be taken from it.
        """
        with self.connector.connecting(upstream.lease.grant) as connections:
            with self.journal.stage("manifest"):
                manifest = upstream.client.manifest(upstream.lease.grant)
            with self.journal.stage("plan"):
                destinations, plans = self._plan(manifest, upstream)
            self.journal.nbytes = sum(plan.nbytes + plan.kept_bytes for plan in plans.values())
            self.journal.kept_bytes = sum(plan.kept_bytes for plan in plans.values())
            self._copy_all(destinations, plans, connections, manifest, upstream)
        self.journal.source = upstream.member.worker_id

    def _plan(self, manifest: Manifest, upstream: Upstream) -> tuple[Destinations, dict[int | None, Plan]]:
        client, grant = upstream.client, upstream.lease.grant
        read_file = functools.cache(functools.partial(client.file, grant))
        destinations = self.room.open(manifest, read_file)
        self.ledger.forget_tensors(self.room.staged)
        plans = {device: self._plan_of(device, manifest, destinations, upstream) for device in destinations}
        if self.passing_on:
            files = {file.path: read_file(file) for file in manifest.files}
            self.passing_on.open(manifest, files, [batch.pieces for p in plans.values() for batch in p.batches])
        return destinations, plans

    def _plan_of(self, device: int | None, manifest: Manifest, destinations: Destinations, upstream: Upstream) -> Plan:
        """Plan what the ledger lacks of one device, or of the host."""
        first, most = self._batch_bytes(device, upstream.lease.grant.bytes_per_second)
        return make_plan(manifest, destinations[device], self.ledger, most, first_bytes=first)

    def _batch_bytes(self, device: int | None, rate: int) -> tuple[int, int]:
        """Return how much travels together, at first and at most: little where the rate is limited, to be even."""
        chunk = self.settings.chunk_bytes
        first, most = (chunk, chunk) if device is None else (DEVICE_FIRST_BYTES, max(chunk, DEVICE_BATCH_BYTES))
        most = min(most, max(int(rate * _EVEN_SECONDS), 1)) if rate else most
        return min(first, most), most

    def _copy_all(
        self,
        destinations: Destinations,
        plans: Mapping[int | None, Plan],
        connections: Connections,
        manifest: Manifest,
        upstream: Upstream,
    ) -> None:
        """Execute the plans, device by device, over the next transport where one fails on the way."""
        lease, done = upstream.lease, 0
        feed = Feed(
            upstream.member.worker_id,
            lease.follow(len(manifest.digests)),
            patience=self.settings.stall_timeout,
            rate=lambda: lease.bytes_per_second,
        )
        for device, plan in plans.items():
            with self.journal.stage("connect"):
                opened = connections.get(device)
            self.journal.notes += [f"{name}: {reason}" for name, reason in opened.skipped]
            total, left = plan.nbytes + plan.kept_bytes, plan
            while (failure := self._copy(left, device, opened, manifest, upstream, feed, done)) is not None:
                self.journal.notes.append(f"{opened.transport.name} did not get through: {failure}")
                with self.journal.stage("connect"):
                    opened = connections.go_on(device, failure)
                left = self._plan_of(device, manifest, destinations, upstream)
            done += total

    def _copy(
        self,
        plan: Plan,
        device: int | None,
        opened: Opened,
        manifest: Manifest,
        upstream: Upstream,
        feed: Feed,
        done: int,
    ) -> TransportUnavailable | None:
        """Execute the plan of one device, or of the host; `done` bytes of other plans are in place.

        Returns why the transport turned out not to work with this source; what has arrived is in the ledger.
        """
        lease = upstream.lease
        self.journal.transport = opened.transport.name

        def advance(verified: int) -> None:
            lease.verified_bytes = done + verified
            self.journal.advance(done + verified, self.journal.nbytes)

        def pass_on(pieces: Pieces) -> None:
            if self.passing_on:
                self.passing_on.verified(chunk_numbers(manifest, pieces))
                lease.verified_chunks = self.passing_on.chunks

        try:
            result = pull(
                plan,
                opened.reader,
                manifest,
                self.ledger,
                feed=feed,
                timeout=self.settings.transfer_timeout,
                device=device,
                verify=self.verify,
                progress=advance,
                verified=pass_on,
            )
        except TransportUnavailable as error:
            return error
        self.journal.stages.append(Stage(COPY, result.seconds, result.nbytes))
        if advice := opened.reader.advice():
            self.journal.notes.append(advice)
        if self.journal.measures and self.journal.nbytes >= _WORTH_MEASURING:
            offers = {offer.name: offer.descriptor for offer in lease.grant.transports}
            with self.journal.aside():
                self.journal.limit = opened.reader.limit() or opened.transport.limit(offers[opened.transport.name])
        opened.reader.close()
        return None
