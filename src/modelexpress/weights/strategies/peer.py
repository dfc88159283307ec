"""Weights from a peer."""

from dataclasses import dataclass

from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.transfer.compare import compare
from modelexpress.transfer.digester import prepare
from modelexpress.transfer.manifest import Manifest
from modelexpress.weights.candidates import find_candidates
from modelexpress.weights.fetch import Destinations, Fetch, ReadFile
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
    """

    name = "peer"
    identity: SourceIdentity
    rank: int
    registry: str
    settings: Settings
    verify: bool = True

    def fill(self, target: Target, journal: Journal) -> None:
        """Fill the target from peers.

        Raises:
            NoSourceFound: No ready source is registered.
            RegistryError: The registry could not be asked.
            LoadError: Every source failed; `causes` says how each did. A single cause is raised itself.
        """
        for device in target.devices:
            prepare(device)
        Fetch(
            self.registry,
            lambda client: find_candidates(client, self.identity, self.rank),
            f"'{self.identity.model_name}' ({self.identity.source_id}) rank {self.rank}",
            _TargetRoom(target),
            journal,
            self.settings,
            self.verify,
        ).run()
        with journal.stage("put in place"):
            target.commit()


@dataclass(frozen=True)
class _TargetRoom:
    """A target's memory as room for a source's bytes."""

    target: Target

    @property
    def staged(self) -> frozenset[str]:
        return self.target.staged

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        compare(manifest, self.target.wanted(manifest.scope))
        return self.target.open(manifest)
