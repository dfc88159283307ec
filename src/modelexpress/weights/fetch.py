"""Fetching from peers: DESIGN.md, section 3, steps 1 to 6, for whatever has room for the bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from modelexpress.client import Client
from modelexpress.errors import (
    LoadError,
    ModelExpressError,
    NoSourceFound,
    PeerError,
    RegistryError,
    TransferError,
    TransportError,
)
from modelexpress.peer import HeldLease, PeerClient, host_id, new_worker_id
from modelexpress.settings import Settings
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.plan import Plan, make_plan
from modelexpress.transfer.pull import pull
from modelexpress.transport import Transport, available, open_first
from modelexpress.weights.candidates import order_candidates
from modelexpress.weights.report import COPY, Journal, Stage
from modelexpress.wire.peer import LeaseGrant
from modelexpress.wire.records import FileSpec, SourceRef

DEVICE_BATCH_BYTES = 1 << 30
"""Bytes that travel and are checked together on a GPU: launching a check costs as much time as 0.2 GB of copying."""

_WORTH_MEASURING = 64 << 20
"""Bytes of a load below which the limit of the link is not measured: that would take longer than the load."""

Destinations = Mapping[int | None, Mapping[str, int]]
"""For each CUDA device, and None for the host, the address of each tensor that goes there."""
ReadFile = Callable[[FileSpec], bytes]
Find = Callable[[Client], Sequence[SourceRef]]


class Room(Protocol):
    """Where a source's bytes go."""

    @property
    def staged(self) -> frozenset[str]:
        """Names of the tensors whose bytes do not outlive a change of the source."""

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        """Return where each tensor is copied to.

        Raises:
            ManifestMismatch: The source does not hold what is wanted here; nothing was changed.
        """


@contextmanager
def usable_transports(settings: Settings) -> Iterator[tuple[Transport, ...]]:
    """Yield the transports that work in this process, fastest first, and close them afterwards."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(transport) for transport in available(settings).transports)


@dataclass(frozen=True)
class Fetch:
    """One target's way through its sources, until one has delivered everything.

    Args:
        registry: HOST:PORT.
        find: Lists the candidates.
        wanted: What is looked for, for messages.
        room: Where the bytes go.
        journal: What happens is written here.
        settings: Timeouts and sizes.
        verify: False skips the digests, which only benchmarks do.
    """

    registry: str
    find: Find
    wanted: str
    room: Room
    journal: Journal
    settings: Settings
    verify: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    reader_id: str = field(default_factory=new_worker_id)

    def run(self) -> None:
        """Fill the room, going on from one source to the next.

        Raises:
            NoSourceFound: No ready source is registered.
            RegistryError: The registry could not be asked.
            LoadError: Every source failed; `causes` says how each did. A single cause is raised itself.
        """
        causes: list[ModelExpressError] = []
        tried: set[str] = set()
        while (found := self._next(tried, causes)) is not None:
            ref, endpoint = found
            tried.add(ref.worker_id)
            try:
                self._read_from(ref, endpoint)
            except (PeerError, TransportError, TransferError) as error:
                causes.append(error)
                self.journal.notes.append(f"source {ref.worker_id}: {error}")
            else:
                return
        raise self._nothing_left(causes)

    def _next(self, tried: set[str], causes: Sequence[ModelExpressError]) -> tuple[SourceRef, str] | None:
        """Return the best source that was not tried, and its address.

        The registry is asked anew each time: sources come and go while a load runs.
        """
        timeout = max(self.settings.source_query_timeout, 0.1)
        try:
            with self.journal.stage("find sources"), Client(self.registry, timeout=timeout) as client:
                for ref in order_candidates(self.find(client), host_id(), self.reader_id):
                    if ref.worker_id not in tried and (endpoint := _endpoint(client, ref)):
                        return ref, endpoint
        except RegistryError as error:
            if not causes:
                raise
            self.journal.notes.append(str(error))
        return None

    def _nothing_left(self, causes: Sequence[ModelExpressError]) -> ModelExpressError:
        if not causes:
            return NoSourceFound(f"no ready source of {self.wanted} is registered: see `mx sources --all`")
        if len(causes) == 1:
            return causes[0]
        return LoadError(f"all {len(causes)} sources of {self.wanted} failed, at last: {causes[-1]}", causes)

    def _read_from(self, ref: SourceRef, endpoint: str) -> None:
        with (
            PeerClient(endpoint) as client,
            self._lease(client, ref) as lease,
            usable_transports(self.settings) as transports,
        ):
            with self.journal.stage("manifest"):
                manifest = client.manifest(lease.grant)
            with self.journal.stage("plan"):
                destinations = self.room.open(manifest, lambda file: client.file(lease.grant, file))
                self.ledger.forget_tensors(self.room.staged)
                plans = {
                    device: make_plan(manifest, addresses, self.ledger, self._batch_bytes(device))
                    for device, addresses in destinations.items()
                }
            self.journal.nbytes = sum(plan.nbytes + plan.kept_bytes for plan in plans.values())
            self.journal.kept_bytes = sum(plan.kept_bytes for plan in plans.values())
            done = 0
            for device, plan in plans.items():
                self._copy(plan, device, transports, manifest, lease, ref.worker_id, done)
                done += plan.nbytes + plan.kept_bytes
            self.journal.source = ref.worker_id

    def _batch_bytes(self, device: int | None) -> int:
        return self.settings.chunk_bytes if device is None else max(self.settings.chunk_bytes, DEVICE_BATCH_BYTES)

    @contextmanager
    def _lease(self, client: PeerClient, ref: SourceRef) -> Iterator[HeldLease]:
        with self.journal.stage("lease"):
            grant = client.acquire(ref.source_id, ref.worker_id, self.reader_id, host_id())
        with HeldLease(client, grant) as lease:
            yield lease

    def _copy(
        self,
        plan: Plan,
        device: int | None,
        transports: Sequence[Transport],
        manifest: Manifest,
        lease: HeldLease,
        source: str,
        done: int,
    ) -> None:
        """Execute the plan of one device, or of the host; `done` bytes of other plans are in place."""

        def advance(verified: int) -> None:
            lease.verified_bytes = done + verified
            self.journal.advance(done + verified, self.journal.nbytes)

        grant = lease.grant
        with self.journal.stage("connect"):
            opened = open_first(transports, grant.transports, grant.lease_id, device)
        self.journal.transport = opened.transport.name
        self.journal.notes += [f"{name}: {reason}" for name, reason in opened.skipped]
        with opened.reader:
            result = pull(
                plan,
                opened.reader,
                manifest,
                self.ledger,
                source=source,
                timeout=self.settings.transfer_timeout,
                device=device,
                verify=self.verify,
                progress=advance,
            )
        self.journal.stages.append(Stage(COPY, result.seconds, result.nbytes))
        if device is None:
            self._measure(opened.transport, grant)

    def _measure(self, transport: Transport, grant: LeaseGrant) -> None:
        if self.journal.nbytes < _WORTH_MEASURING:
            return
        descriptor = next(o.descriptor for o in grant.transports if o.name == transport.name)
        with self.journal.aside():
            self.journal.limit = transport.limit(descriptor)


def _endpoint(client: Client, ref: SourceRef) -> str:
    """Return HOST:PORT of a source's worker server; "" where it is gone or names none, as workers of other makes do."""
    found = client.get(ref.source_id, ref.worker_id)
    return found[0].worker_grpc_endpoint if found is not None else ""
