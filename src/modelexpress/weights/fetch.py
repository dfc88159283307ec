"""Fetching from peers: DESIGN.md, section 3, from source to source until everything is there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from modelexpress.client import Client
from modelexpress.errors import (
    ArtifactError,
    LoadError,
    ModelExpressError,
    NoSourceFound,
    PeerError,
    RegistryError,
    SourceBusy,
    TransferError,
    TransportError,
)
from modelexpress.peer import ENDPOINT_TOPOLOGY, Seeker, Upstream, host_id, new_worker_id
from modelexpress.settings import Settings
from modelexpress.transfer.ledger import Ledger
from modelexpress.weights.candidates import order_candidates
from modelexpress.weights.connecting import Connector
from modelexpress.weights.reading import Reading, Room
from modelexpress.weights.relaying import Relaying
from modelexpress.weights.report import Journal
from modelexpress.wire.records import Asking, Member, SourceRef

Find = Callable[[Client], Sequence[SourceRef]]


@dataclass(frozen=True)
class _Failure:
    """A source that was of no use, and why."""

    worker_id: str
    error: ModelExpressError


@dataclass(frozen=True)
class Fetch:
    """One target's way through its sources, until one has delivered everything.

    Args:
        registry: HOST:PORT.
        find: Lists the complete sources.
        wanted: What is looked for, for messages.
        room: Where the bytes go.
        journal: What happens is written here.
        settings: Timeouts and sizes.
        verify: False skips the digests, which only benchmarks do.
        passing_on: Serves what has arrived to others; None: this target serves nobody.
    """

    registry: str
    find: Find
    wanted: str
    room: Room
    journal: Journal
    settings: Settings
    verify: bool = True
    passing_on: Relaying | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def run(self) -> None:
        """Fill the room, going on from one source to the next.

        Raises:
            NoSourceFound: No ready source is registered.
            RegistryError: The registry could not be asked.
            LoadError: Every source failed; `causes` says how each did. A single cause is raised itself.
        """
        with Connector(self.settings, self.room.devices) as connector:
            self._run(connector)

    def _run(self, connector: Connector) -> None:
        failures: list[_Failure] = []
        reading = Reading(self.room, self.ledger, self.journal, self.settings, connector, self.passing_on, self.verify)
        asking = Asking(self.passing_on.member if self.passing_on else Member(new_worker_id()))
        lost: Upstream | None = None
        while (upstream := self._join(asking, lost, failures)) is not None:
            lost = upstream
            if self.passing_on:
                self.passing_on.reads_from((upstream.member, *upstream.above))
            try:
                with upstream:
                    reading.run(upstream)
            except (PeerError, TransportError, TransferError, ArtifactError) as error:
                self._note(failures, upstream.member, error)
                chunks = self.passing_on.chunks if self.passing_on else 0
                useless = frozenset(f.worker_id for f in failures if not isinstance(f.error, SourceBusy))
                asking = Asking(asking.member, chunks, returning=True, avoid=useless)
            else:
                return
        raise self._nothing_left([failure.error for failure in failures])

    def _note(self, failures: list[_Failure], member: Member, error: ModelExpressError) -> None:
        failures.append(_Failure(member.worker_id, error))
        self.journal.notes.append(f"source {member.worker_id}: {error}")

    def _join(self, asking: Asking, lost: Upstream | None, failures: list[_Failure]) -> Upstream | None:
        """Return a source, complete or still receiving, that lets this target read.

        Those above a source that was lost come first: one of them has a place now, and the registry is not needed for
        that. It is asked anew each time: sources come and go while a load runs.
        """

        def complain(member: Member, error: ModelExpressError) -> None:
            self._note(failures, member, error)

        def tell(member: Member) -> None:
            if self.passing_on:
                self.passing_on.asks(member)

        if lost is not None and lost.above:
            with self.journal.stage("lease"):
                found = Seeker(lost.source_id, complain, tell).seek(lost.above, asking)
            if found is not None:
                return found
        timeout = self.settings.answer_timeout
        try:
            with Client(self.registry, timeout=timeout) as client:
                with self.journal.stage("find sources"):
                    refs = order_candidates(self.find(client), host_id(), asking.member.worker_id)
                if not refs:
                    return None
                with self.journal.stage("lease"):
                    return Seeker(refs[0].source_id, complain, tell).seek(_members(client, refs), asking)
        except RegistryError as error:
            if not failures:
                raise
            self.journal.notes.append(str(error))
        return None

    def _nothing_left(self, causes: Sequence[ModelExpressError]) -> ModelExpressError:
        if not causes:
            return NoSourceFound(f"no ready source of {self.wanted} is registered: see `mx sources --all`")
        if len(causes) == 1:
            return causes[0]
        return LoadError(f"all {len(causes)} sources of {self.wanted} failed, at last: {causes[-1]}", causes)


def _members(client: Client, refs: Sequence[SourceRef]) -> Iterator[Member]:
    """Yield the sources that can be asked; those that are gone, or name no address as other makes do, are left out."""
    for ref in refs:
        if endpoint := ref.topology.get(ENDPOINT_TOPOLOGY, ""):
            yield Member(ref.worker_id, endpoint)
            continue
        found = client.get(ref.source_id, ref.worker_id)
        if found is not None and (endpoint := found[0].worker_grpc_endpoint):
            yield Member(ref.worker_id, endpoint)
