"""Fetching a cache from a peer: only what is missing, only what may be trusted, and once per host."""

import time
from pathlib import Path

from modelexpress.artifacts.install import Installed, install
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.marks import FAILURE_SECONDS, FailedRecently, InstalledByOther, attempt
from modelexpress.artifacts.report import ArtifactReport, Outcome
from modelexpress.artifacts.room import CacheRoom, Received, Trust
from modelexpress.client import Client
from modelexpress.errors import ArtifactInvalid, NoSourceFound, TriedByOther
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.transfer.ledger import Ledger
from modelexpress.weights.candidates import find_candidates
from modelexpress.weights.fetch import Fetch
from modelexpress.weights.report import Journal, Progress
from modelexpress.wire.records import SourceRef


def fetch(
    kind: Kind,
    identity: SourceIdentity,
    root: Path,
    *,
    registry: str | None = None,
    node_rank: int = 0,
    trust: Trust | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> ArtifactReport:
    """Complete a cache with what a peer has compiled.

    One process of a host does this for all of them; the others wait for its end.

    Args:
        kind: Of the cache.
        identity: Of the cache, as its kind made it.
        root: Of the cache; it need not exist.
        registry: HOST:PORT of the registry; None takes it from the environment.
        node_rank: Of this host within its replica.
        trust: Whose artifacts may be installed; None: everybody's who is in the registry.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        NoSourceFound: Nobody offers this cache.
        RegistryError: The registry could not be asked.
        ArtifactUnsigned: The only source shows no signature that counts, and the policy demands one.
        TriedByOther: Another process of this host has just failed to.
        ArtifactError: The cache could not be installed.
        LoadError: Every source failed; `causes` says how each did. A single cause is raised itself.
    """
    settings = settings or Settings.read()
    with attempt(root, f"{identity.source_id}-{node_rank}", FAILURE_SECONDS, wait=settings.transfer_timeout) as mine:
        if isinstance(mine, InstalledByOther):
            return ArtifactReport(kind.name, root, Outcome.BY_OTHER, paths=mine.paths)
        if isinstance(mine, FailedRecently):
            raise TriedByOther(f"another process of this host has tried, {mine.age:.0f} s ago: {mine.reason}")
        fetching = _Fetching(kind, identity, root, registry or settings.registry, node_rank, trust or Trust(), settings)
        report = fetching.run(Journal(progress, measures=False))
        mine.succeed(report.paths)
    return report


class _Fetching:
    """One process's way through the sources of a cache, until one has delivered what can be installed."""

    def __init__(
        self,
        kind: Kind,
        identity: SourceIdentity,
        root: Path,
        registry: str,
        node_rank: int,
        trust: Trust,
        settings: Settings,
    ) -> None:
        self._kind = kind
        self._identity = identity
        self._root = root
        self._registry = registry
        self._node_rank = node_rank
        self._settings = settings
        self._room = CacheRoom(kind, root, trust)
        self._ledger = Ledger()
        self._liars: dict[str, ArtifactInvalid] = {}

    def run(self, journal: Journal) -> ArtifactReport:
        """Fetch and install; a source whose bytes are not what it sealed is left out, and the next one asked."""
        started = time.perf_counter()
        while True:
            received = self._fetch(journal)
            try:
                with journal.stage("install"):
                    installed = self._install(received)
            except ArtifactInvalid as error:
                self._liars[journal.source] = error
                journal.notes.append(f"source {journal.source}: {error}")
                self._ledger = Ledger()
            else:
                return self._report(received, installed, journal, time.perf_counter() - started)

    def _fetch(self, journal: Journal) -> Received:
        try:
            Fetch(
                self._registry,
                self._find,
                f"the {self._kind.name} cache ({self._identity.source_id})",
                self._room,
                journal,
                self._settings,
                ledger=self._ledger,
            ).run()
        except NoSourceFound:
            if self._liars:
                raise next(reversed(self._liars.values())) from None
            raise
        assert self._room.received is not None, "a source that was read was opened"
        return self._room.received

    def _find(self, client: Client) -> list[SourceRef]:
        refs = find_candidates(client, self._identity, self._node_rank)
        return [ref for ref in refs if ref.worker_id not in self._liars]

    def _install(self, received: Received) -> Installed:
        manifest = received.manifest
        if not received.missing:
            return Installed((), manifest.files, ())
        return install(
            self._kind, manifest, self._root, received.contents, verdict=received.verdict, mtimes=received.mtimes
        )

    def _report(self, received: Received, installed: Installed, journal: Journal, seconds: float) -> ArtifactReport:
        manifest = received.manifest
        return ArtifactReport(
            kind=self._kind.name,
            root=self._root,
            outcome=Outcome.INSTALLED if installed.written else Outcome.COMPLETE,
            artifact_id=manifest.artifact_id,
            source=journal.source,
            transport=journal.transport,
            verdict=received.verdict.reason,
            files=len(manifest.files),
            written=len(installed.written),
            kept=len(installed.kept),
            nbytes=sum(file.size for file in received.missing),
            total_bytes=manifest.total_bytes,
            seconds=seconds,
            stages=tuple(journal.stages),
            notes=tuple(journal.notes),
            paths=tuple(file.path.removeprefix("/") for file in installed.written),
        )
