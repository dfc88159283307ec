"""Sources that lie, and artifacts that nobody trusted signed: nothing of them reaches the cache, or is even fetched."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelexpress.artifacts.fetch import fetch
from modelexpress.artifacts.keys import TrustedKeys, new_private_key
from modelexpress.artifacts.offer import SEALED_FILE, SIGNATURE_FILE, TIMES_FILE
from modelexpress.artifacts.report import ArtifactReport
from modelexpress.artifacts.room import Trust
from modelexpress.artifacts.sealed import SealedManifest
from modelexpress.artifacts.signing import Policy, Signer
from modelexpress.artifacts.snapshot import Snapshot, take_snapshot
from modelexpress.errors import ArtifactInvalid, ArtifactUnsigned, LoadError, ManifestInvalid, ManifestMismatch
from modelexpress.identity import SourceIdentity, SourceType
from modelexpress.peer import Material, Worker, file_specs
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Scope
from modelexpress.transfer.seal import seal
from modelexpress.wire.records import TensorSpec
from tests.support.artifact_source import ArtifactSource
from tests.support.caches import KINDS, cache_files, read_cache, write_cache
from tests.support.materials import new_identity

PLAIN = KINDS["plain"]
COUNT, NBYTES = 4, 1024


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def worker(registry: str) -> Iterator[Worker]:
    with Worker(settings=Settings(registry=registry, worker_grpc_port=0)) as worker:
        yield worker


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return take_snapshot(PLAIN, write_cache(tmp_path / "source", cache_files(COUNT, NBYTES)), 1 << 20)


def publish(
    worker: Worker,
    identity: SourceIdentity,
    snapshot: Snapshot,
    files: dict[str, bytes],
    *,
    rename: Callable[[str], str] = str,
    shorter: int = 0,
) -> None:
    """Offer a cache as `offer` does, with other small files, names or sizes than it has."""
    region = snapshot.arena.region
    tensors = [
        TensorSpec(rename(file.path), "uint8", (size,), (1,), 0, offset, size)
        for file, offset in zip(snapshot.manifest.files, snapshot.offsets, strict=True)
        for size in [max(file.size - shorter, 0)]
    ]
    manifest = seal(tensors, [region], scope=Scope.ARTIFACT, chunk_bytes=1 << 20, files=file_specs(files))
    material = Material(PLAIN.identity(identity), 0, manifest, (region,), (snapshot.arena,), files)
    assert worker.publish(material).wait_ready(20)


def bring(registry: str, identity: SourceIdentity, root: Path, trust: Trust | None = None) -> ArtifactReport:
    told: list[int] = []
    try:
        return fetch(
            PLAIN,
            PLAIN.identity(identity),
            root,
            trust=trust,
            progress=lambda done, total: told.append(done),
            settings=Settings(registry=registry),
        )
    except Exception:  # whatever it was: the test looks at it, too
        assert not told, "content was fetched before the source was judged"
        raise


def honest(snapshot: Snapshot) -> dict[str, bytes]:
    return {SEALED_FILE: snapshot.manifest.canonical_json()}


def with_path(snapshot: Snapshot, path: str) -> dict[str, bytes]:
    value = json.loads(snapshot.manifest.canonical_json())
    value["files"][-1]["path"] = path
    return {SEALED_FILE: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()}


def other_kind(snapshot: Snapshot) -> dict[str, bytes]:
    manifest = dataclasses.replace(snapshot.manifest, source_type=SourceType.DEEP_GEMM_CACHE)
    return {SEALED_FILE: manifest.canonical_json()}


HOSTILE: dict[str, Callable[[Snapshot], dict[str, bytes]]] = {
    "no manifest": lambda snapshot: {},
    "no JSON": lambda snapshot: {SEALED_FILE: b"\xff{"},
    "deep JSON": lambda snapshot: {SEALED_FILE: b"[" * 100_000},
    "not canonical": lambda snapshot: {SEALED_FILE: snapshot.manifest.canonical_json() + b"\n"},
    "a way out": lambda snapshot: with_path(snapshot, "/z/../../../escaped"),
    "relative": lambda snapshot: with_path(snapshot, "zzz"),
    "another kind": other_kind,
    "times that are none": lambda snapshot: honest(snapshot) | {TIMES_FILE: b'[1,2,3,"4",5]'},
    "too few times": lambda snapshot: honest(snapshot) | {TIMES_FILE: b"[1]"},
    "endless times": lambda snapshot: honest(snapshot) | {TIMES_FILE: b"[%s]" % b",".join([b"9" * 30] * 5)},
    "times as a number": lambda snapshot: honest(snapshot) | {TIMES_FILE: b"7"},
}


@pytest.mark.parametrize("lie", HOSTILE)
def test_a_source_that_shows_something_else_than_a_cache_is_refused_unread(
    registry: str, identity: SourceIdentity, worker: Worker, snapshot: Snapshot, tmp_path: Path, lie: str
) -> None:
    publish(worker, identity, snapshot, HOSTILE[lie](snapshot))
    with pytest.raises(ArtifactInvalid):
        bring(registry, identity, tmp_path / "cache")
    assert read_cache(tmp_path / "cache") == {}
    assert not list(tmp_path.parent.rglob("escaped"))


@pytest.mark.parametrize(
    ("rename", "shorter"),
    [(lambda path: path + "x", 0), (lambda path: "/" + path, 0), (str, 1)],
    ids=["x", "/", "size"],
)
def test_a_source_that_offers_other_files_than_it_sealed_is_refused_unread(
    registry: str,
    identity: SourceIdentity,
    worker: Worker,
    snapshot: Snapshot,
    tmp_path: Path,
    rename: Callable[[str], str],
    shorter: int,
) -> None:
    publish(worker, identity, snapshot, honest(snapshot), rename=rename, shorter=shorter)
    with pytest.raises(ManifestMismatch, match="than it sealed"):
        bring(registry, identity, tmp_path / "cache")
    assert read_cache(tmp_path / "cache") == {}


def test_a_source_without_times_is_fine(
    registry: str, identity: SourceIdentity, worker: Worker, snapshot: Snapshot, tmp_path: Path
) -> None:
    publish(worker, identity, snapshot, honest(snapshot))
    assert bring(registry, identity, tmp_path / "cache").written == COUNT + 1
    assert read_cache(tmp_path / "cache") == cache_files(COUNT, NBYTES)


def test_a_manifest_larger_than_any_is_not_read(
    registry: str, identity: SourceIdentity, worker: Worker, snapshot: Snapshot, tmp_path: Path
) -> None:
    publish(worker, identity, snapshot, {SEALED_FILE: bytes(257 << 20)})
    with pytest.raises(ManifestInvalid, match="is larger than"):
        bring(registry, identity, tmp_path / "cache")


class TestSignatures:
    """Artifacts that must be signed, by a listed key."""

    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        new_private_key(tmp_path / "own.pem")
        return tmp_path / "own.pem"

    @pytest.fixture
    def trust(self, tmp_path: Path, key: Path) -> Trust:
        (tmp_path / "trusted").write_text(Signer.from_file(key).public_key + " the fleet\n")
        return Trust(Policy.REQUIRE, TrustedKeys.from_file(tmp_path / "trusted"))

    def test_a_signed_artifact_is_installed(
        self, registry: str, identity: SourceIdentity, key: Path, trust: Trust, tmp_path: Path
    ) -> None:
        with ArtifactSource(registry, identity, COUNT, NBYTES, key=key):
            report = bring(registry, identity, tmp_path / "cache", trust)
        assert report.verdict == "signed by the fleet"
        assert read_cache(tmp_path / "cache") == cache_files(COUNT, NBYTES)

    def test_an_unsigned_artifact_is_never_fetched(
        self, registry: str, identity: SourceIdentity, trust: Trust, tmp_path: Path
    ) -> None:
        with ArtifactSource(registry, identity, COUNT, NBYTES), pytest.raises(ArtifactUnsigned, match="not signed"):
            bring(registry, identity, tmp_path / "cache", trust)
        assert read_cache(tmp_path / "cache") == {}

    def test_the_signature_of_a_stranger_does_not_count(
        self, registry: str, identity: SourceIdentity, trust: Trust, tmp_path: Path
    ) -> None:
        new_private_key(tmp_path / "stranger.pem")
        with (
            ArtifactSource(registry, identity, COUNT, NBYTES, key=tmp_path / "stranger.pem"),
            pytest.raises(ArtifactUnsigned, match="not listed"),
        ):
            bring(registry, identity, tmp_path / "cache", trust)
        assert read_cache(tmp_path / "cache") == {}

    def test_the_signature_of_another_artifact_does_not_count(
        self,
        registry: str,
        identity: SourceIdentity,
        worker: Worker,
        snapshot: Snapshot,
        key: Path,
        trust: Trust,
        tmp_path: Path,
    ) -> None:
        other = take_snapshot(PLAIN, write_cache(tmp_path / "other", cache_files(COUNT, NBYTES, seed=1)), 1 << 20)
        publish(worker, identity, snapshot, honest(snapshot) | {SIGNATURE_FILE: Signer.from_file(key).sign(other)})
        with pytest.raises(ArtifactUnsigned, match="signature is wrong"):
            bring(registry, identity, tmp_path / "cache", trust)
        assert read_cache(tmp_path / "cache") == {}

    def test_a_signed_source_follows_unsigned_ones(
        self, registry: str, identity: SourceIdentity, key: Path, trust: Trust, tmp_path: Path
    ) -> None:
        with (
            ArtifactSource(registry, identity, COUNT, NBYTES),
            ArtifactSource(registry, identity, COUNT, NBYTES),
            ArtifactSource(registry, identity, COUNT, NBYTES, key=key) as signed,
        ):
            report = bring(registry, identity, tmp_path / "cache", trust)
        assert report.source == signed.worker_id

    def test_several_unsigned_sources_are_all_named(
        self, registry: str, identity: SourceIdentity, trust: Trust, tmp_path: Path
    ) -> None:
        with (
            ArtifactSource(registry, identity, COUNT, NBYTES),
            ArtifactSource(registry, identity, COUNT, NBYTES),
            pytest.raises(LoadError, match="all 2 sources of the plain cache") as caught,
        ):
            bring(registry, identity, tmp_path / "cache", trust)
        assert [type(cause) for cause in caught.value.causes] == [ArtifactUnsigned] * 2

    def test_with_a_warning_an_unsigned_artifact_is_installed(
        self, registry: str, identity: SourceIdentity, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with ArtifactSource(registry, identity, COUNT, NBYTES):
            report = bring(registry, identity, tmp_path / "cache", Trust(Policy.WARN))
        assert report.written == COUNT + 1
        assert "is taken though it is not signed" in caplog.text


def test_an_artifact_is_named_by_its_manifest(snapshot: Snapshot) -> None:
    sealed = SealedManifest.from_json(snapshot.manifest.canonical_json())
    (spec,) = file_specs(honest(snapshot))
    assert sealed.artifact_id == spec.sha256
