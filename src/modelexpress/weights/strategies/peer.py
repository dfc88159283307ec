"""Weights from a peer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from modelexpress.errors import TransportError, UnsupportedModel
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.transfer.compare import compare
from modelexpress.transfer.digester import prepare
from modelexpress.transfer.manifest import Manifest
from modelexpress.weights.candidates import find_candidates
from modelexpress.weights.fetch import Fetch
from modelexpress.weights.passing_on import PassingOn
from modelexpress.weights.reading import Destinations, ReadFile
from modelexpress.weights.report import Journal
from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.target import Target


@dataclass(frozen=True)
class PeerStrategy(Strategy):
    """Reads from the first source that delivers, going on from one to the next.

    Args:
        identity: What the target wants.
        rank: Of this worker.
        registry: HOST:PORT.
        settings: Timeouts and sizes.
        verify: False skips the digests, which only benchmarks do.
        worker: Serves what has arrived to others while the rest is on its way, and everything afterwards; None: this
            target serves nobody.
    """

    name = "peer"
    identity: SourceIdentity
    rank: int
    registry: str
    settings: Settings
    verify: bool = True
    worker: Worker | None = None

    def fill(self, target: Target, journal: Journal) -> None:
        """Fill the target from peers.

        Raises:
            NoSourceFound: No ready source is registered.
            RegistryError: The registry could not be asked.
            LoadError: Every source failed; `causes` says how each did. A single cause is raised itself.
        """
        for device in target.devices:
            prepare(device)
        with self._passing_on(target, journal) as passing_on:
            Fetch(
                self.registry,
                lambda client: find_candidates(client, self.identity, self.rank),
                f"'{self.identity.model_name}' ({self.identity.source_id}) rank {self.rank}",
                _TargetRoom(target),
                journal,
                self.settings,
                self.verify,
                passing_on,
            ).run()
            with journal.stage("put in place"):
                target.commit()
            if passing_on:
                passing_on.publish()

    @contextmanager
    def _passing_on(self, target: Target, journal: Journal) -> Iterator[PassingOn | None]:
        """Yield what serves others, where there is a worker and the memory allows it; withdraw it on failure."""
        if self.worker is None:
            yield None
            return
        with ExitStack() as undo:
            relay = self.worker.relay(self.identity)
            undo.callback(relay.close)
            passing_on = None
            try:
                with journal.stage("open to others"):
                    passing_on = PassingOn(relay, target, self.rank)
            except (UnsupportedModel, TransportError) as error:
                journal.notes.append(f"not passed on: {error}")
                undo.close()
            yield passing_on
            undo.pop_all()


@dataclass(frozen=True)
class _TargetRoom:
    """A target's memory as room for a source's bytes."""

    target: Target

    @property
    def devices(self) -> frozenset[int | None]:
        return frozenset(self.target.devices)

    @property
    def staged(self) -> frozenset[str]:
        return self.target.staged

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        compare(manifest, self.target.wanted(manifest.scope))
        return self.target.open(manifest)
