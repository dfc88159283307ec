"""Caches travel from real processes to this one: whole, only what is missing, only from those who may be trusted."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelexpress.artifacts.fetch import fetch
from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.report import ArtifactReport, Outcome
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.client import Client
from modelexpress.errors import ArtifactInvalid, ModelExpressError, NoSourceFound, TriedByOther
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient, Publication, Worker
from modelexpress.settings import Settings
from modelexpress.wire.records import SourceStatus
from tests.support.artifact_source import ArtifactSource
from tests.support.caches import KINDS, cache_files, read_cache, write_cache
from tests.support.materials import make_material, new_identity

PLAIN, OTHER = KINDS["plain"], KINDS["other"]
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


def settings(registry: str, transport: str = "auto") -> Settings:
    chosen = {"registry": registry, "transport": transport, "worker_grpc_port": 0, "chunk_bytes": MIB}
    return Settings.model_validate(chosen | {"stall_timeout": 5})


def bring(
    registry: str,
    identity: SourceIdentity,
    root: Path,
    *,
    transport: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> ArtifactReport:
    chosen = settings(registry, transport)
    return fetch(PLAIN, PLAIN.identity(identity), root, progress=progress, settings=chosen)


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_a_whole_cache_travels(registry: str, identity: SourceIdentity, tmp_path: Path, transport: str) -> None:
    files = cache_files(40, 64 * KIB)
    with ArtifactSource(registry, identity, 40, 64 * KIB) as source:
        report = bring(registry, identity, tmp_path / "cache", transport=transport)
    assert read_cache(tmp_path / "cache") == files
    assert report.outcome is Outcome.INSTALLED
    assert (report.source, report.transport, report.artifact_id) == (source.worker_id, transport, source.artifact_id)
    assert (report.files, report.written, report.kept) == (41, 41, 0)
    assert report.nbytes == report.total_bytes == 40 * 64 * KIB
    assert set(report.paths) == set(files)
    assert "fetched over" in str(report)
    assert '"written": 41' in report.json()


def test_only_missing_files_travel(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    files = cache_files(10, 64 * KIB)
    there = dict(list(files.items())[:4])
    root = write_cache(tmp_path, there)
    with ArtifactSource(registry, identity, 10, 64 * KIB):
        report = bring(registry, identity, root)
    assert read_cache(root) == files
    assert report.nbytes == 6 * 64 * KIB
    assert report.written == 7, "the empty file, too"
    assert set(report.paths) == set(files) - set(there)


def test_a_complete_cache_gets_nothing(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    root = write_cache(tmp_path, cache_files(10, 64 * KIB))
    with ArtifactSource(registry, identity, 10, 64 * KIB):
        report = bring(registry, identity, root)
    assert report.outcome is Outcome.COMPLETE
    assert (report.nbytes, report.written) == (0, 0)
    assert report.paths == ()


def test_an_identity_needs_no_model_name(registry: str, tmp_path: Path) -> None:
    nameless = SourceIdentity(gpu_arch=new_identity().model_name)
    with Worker(settings=settings(registry)) as worker:
        _offer(worker, nameless, tmp_path / "a", cache_files(2, KIB))
        assert bring(registry, nameless, tmp_path / "b").written == 3


def test_nobody_to_ask_is_said(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    with pytest.raises(NoSourceFound, match="no ready source of the plain cache"):
        bring(registry, identity, tmp_path)
    with pytest.raises(TriedByOther, match="another process of this host has tried"):
        bring(registry, identity, tmp_path)


class KillAt:
    """Progress that kills whichever source is being read at a fraction of the way, and keeps what it was told."""

    def __init__(self, fraction: float, sources: Sequence[ArtifactSource]) -> None:
        self._fraction = fraction
        self._sources = sources
        self.told: list[int] = []
        self.killed: list[ArtifactSource] = []

    def __call__(self, done: int, total: int) -> None:
        self.told.append(done)
        if self.killed or done < self._fraction * total:
            return
        for source in self._sources:
            with PeerClient(source.endpoint) as client:
                if client.readers():
                    source.kill()
                    self.killed.append(source)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_another_source_goes_on_where_the_first_one_died(
    registry: str, identity: SourceIdentity, tmp_path: Path, fraction: float
) -> None:
    with (
        # So slow that what is missing when one is killed is not on its way yet.
        ArtifactSource(registry, identity, 64, MIB, uplink=40 * MIB) as first,
        ArtifactSource(registry, identity, 64, MIB, uplink=40 * MIB) as second,
    ):
        killer = KillAt(fraction, [first, second])
        report = bring(registry, identity, tmp_path, transport="tcp", progress=killer)
    assert read_cache(tmp_path) == cache_files(64, MIB)
    assert [report.source] == [source.worker_id for source in (first, second) if source not in killer.killed]
    assert killer.told == sorted(killer.told), "what was verified is not fetched again"
    assert any(source.worker_id in note for source in killer.killed for note in report.notes)


def test_a_second_source_with_other_files_never_mixes_with_the_first(
    registry: str, identity: SourceIdentity, tmp_path: Path
) -> None:
    with (
        ArtifactSource(registry, identity, 64, MIB, seed=0) as first,
        ArtifactSource(registry, identity, 48, MIB + 1, seed=1) as second,
    ):
        killer = KillAt(0.5, [first, second])
        bring(registry, identity, tmp_path, transport="tcp", progress=killer)
    assert read_cache(tmp_path) == (cache_files(48, MIB + 1, 1) if killer.killed == [first] else cache_files(64, MIB))


def test_a_second_source_with_files_of_equal_size_never_mixes_with_the_first(
    registry: str, identity: SourceIdentity, tmp_path: Path
) -> None:
    with (
        ArtifactSource(registry, identity, 64, MIB, seed=0) as first,
        ArtifactSource(registry, identity, 64, MIB, seed=1) as second,
    ):
        killer = KillAt(0.5, [first, second])
        bring(registry, identity, tmp_path, transport="tcp", progress=killer)
    assert read_cache(tmp_path) == cache_files(64, MIB, 1 if killer.killed == [first] else 0)


def test_nothing_is_installed_when_the_only_source_died(
    registry: str, identity: SourceIdentity, tmp_path: Path
) -> None:
    with ArtifactSource(registry, identity, 64, MIB) as source, pytest.raises(ModelExpressError):
        bring(registry, identity, tmp_path, transport="tcp", progress=KillAt(0.5, [source]))
    assert read_cache(tmp_path) == {}


def test_bytes_that_are_not_what_was_sealed_are_not_installed(
    registry: str, identity: SourceIdentity, tmp_path: Path
) -> None:
    with ArtifactSource(registry, identity, 4, KIB, lie="content"), pytest.raises(ArtifactInvalid):
        bring(registry, identity, tmp_path)
    assert read_cache(tmp_path) == {}


def test_an_honest_source_follows_one_that_lies(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    with ArtifactSource(registry, identity, 4, KIB, lie="content") as liar:
        _until_asked_first(registry, identity, liar)
        with ArtifactSource(registry, identity, 4, KIB) as honest:
            report = bring(registry, identity, tmp_path)
    assert report.source == honest.worker_id
    assert read_cache(tmp_path) == cache_files(4, KIB)


def test_material_that_is_no_cache_is_passed_over(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    weights = make_material(identity=PLAIN.identity(identity))
    with Worker(settings=settings(registry)) as worker:
        assert worker.publish(weights).wait_ready(20)
        with pytest.raises(ArtifactInvalid, match="no sealed manifest"):
            bring(registry, identity, tmp_path / "alone")
        with ArtifactSource(registry, identity, 4, KIB):
            assert bring(registry, identity, tmp_path / "two").written == 5


def test_removing_one_cache_leaves_its_neighbours(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    with Worker(settings=settings(registry)) as worker, Client(registry) as client:
        first = _offer(worker, identity, tmp_path / "a", cache_files(3, KIB))
        snapshot = take_snapshot(OTHER, write_cache(tmp_path / "b", cache_files(3, KIB, 1)), MIB)
        other = offer(snapshot, OTHER.identity(identity), worker=worker, settings=settings(registry))
        assert other.wait_ready(20)
        first.close()
        assert not client.list_sources(PLAIN.identity(identity), status=SourceStatus.READY)
        report = fetch(OTHER, OTHER.identity(identity), tmp_path / "got", settings=settings(registry))
        assert report.written == 4
        again = _offer(worker, identity, tmp_path / "a", {})
        first.close()
        assert client.list_sources(PLAIN.identity(identity), status=SourceStatus.READY), "the successor stays"
        again.close()


def test_two_targets_at_once(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    with (
        ArtifactSource(registry, identity, 16, MIB, transport="tcp", uplink=64 * MIB),
        ThreadPoolExecutor(2) as pool,
    ):
        roots = [tmp_path / "a", tmp_path / "b"]
        reports = list(pool.map(lambda root: bring(registry, identity, root), roots))
    assert [report.outcome for report in reports] == [Outcome.INSTALLED] * 2
    assert all(read_cache(root) == cache_files(16, MIB) for root in roots)


def test_two_targets_of_one_cache_fetch_it_once(registry: str, identity: SourceIdentity, tmp_path: Path) -> None:
    meeting = threading.Barrier(2)

    def one(number: int) -> ArtifactReport:
        meeting.wait(20)
        return bring(registry, identity, tmp_path)

    with (
        ArtifactSource(registry, identity, 16, MIB, transport="tcp", uplink=64 * MIB),
        ThreadPoolExecutor(2) as pool,
    ):
        reports = list(pool.map(one, range(2)))
    assert sorted(report.outcome for report in reports) == [Outcome.BY_OTHER, Outcome.INSTALLED]
    assert read_cache(tmp_path) == cache_files(16, MIB)


def _offer(worker: Worker, identity: SourceIdentity, root: Path, files: dict[str, bytes]) -> Publication:
    snapshot = take_snapshot(PLAIN, write_cache(root, files), MIB)
    publication = offer(snapshot, PLAIN.identity(identity), worker=worker, settings=Settings(chunk_bytes=MIB))
    assert publication.wait_ready(20)
    return publication


def _until_asked_first(registry: str, identity: SourceIdentity, source: ArtifactSource) -> None:
    with Client(registry) as client:
        (ref,) = client.list_sources(PLAIN.identity(identity), status=SourceStatus.READY)
        assert ref.worker_id == source.worker_id
