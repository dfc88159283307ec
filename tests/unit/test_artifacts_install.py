"""Installing: verified before anything is seen, never outside the root, never over what is there."""

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.artifacts import compare, staging
from modelexpress.artifacts.checksum import checksum, file_checksum
from modelexpress.artifacts.install import Installed, install, missing
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.sealed import SealedFile, SealedManifest
from modelexpress.artifacts.signing import Verdict
from modelexpress.artifacts.snapshot import Snapshot, take_snapshot
from modelexpress.artifacts.staging import StagedFile, Staging
from modelexpress.errors import ArtifactError, ArtifactInvalid
from modelexpress.identity import SourceType
from tests.support.caches import cache_files, read_cache, write_cache

KIND = Triton()
FILES = cache_files(12, 5_000) | {"7/k/lib.so": b"code", "7/k/lib.so.1": b"code"}


@pytest.fixture
def artifact(tmp_path: Path) -> Iterator[Snapshot]:
    with take_snapshot(KIND, write_cache(tmp_path / "source", FILES), 4_096) as snapshot:
        yield snapshot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "target" / "cache"


def contents_of(snapshot: Snapshot) -> dict[int, memoryview]:
    return {file.index: snapshot.content(file.index) for file in snapshot.manifest.files}


def put(snapshot: Snapshot, root: Path) -> Installed:
    return install(KIND, snapshot.manifest, root, contents_of(snapshot))


def paths(files: tuple[SealedFile, ...]) -> set[str]:
    return {file.path[1:] for file in files}


def manifest_of(path: str, content: bytes) -> SealedManifest:
    """Return the manifest of one file, however odd its path is; it is made without being checked."""
    manifest = SealedManifest(SourceType.TRITON_CACHE, 4_096, (), ())
    file = SealedFile(0, path, len(content), checksum(content))
    object.__setattr__(manifest, "files", (file,))
    return manifest


def test_everything_is_there_afterwards_and_nothing_is_missing(artifact: Snapshot, root: Path) -> None:
    assert paths(missing(KIND, artifact.manifest, root)) == set(FILES)
    assert not root.exists()
    done = put(artifact, root)
    assert (paths(done.written), done.present, done.kept, done.foreign) == (set(FILES), (), (), ())
    assert read_cache(root) == FILES
    assert missing(KIND, artifact.manifest, root) == ()
    assert paths(put(artifact, root).present) == set(FILES)


def test_only_missing_files_are_asked_for(artifact: Snapshot, root: Path) -> None:
    put(artifact, root)
    gone = sorted(FILES)[3]
    (root / gone).unlink()
    wanted = missing(KIND, artifact.manifest, root)
    assert paths(wanted) == {gone}
    assert paths(
        install(KIND, artifact.manifest, root, {f.index: artifact.content(f.index) for f in wanted}).written
    ) == {gone}
    assert read_cache(root) == FILES


def test_a_file_that_is_there_is_kept_and_counted(artifact: Snapshot, root: Path) -> None:
    mine = sorted(FILES)[4]
    for content in (b"another result", FILES[mine][::-1]):
        write_cache(root, {mine: content, "own": b"own"})
        assert paths(missing(KIND, artifact.manifest, root)) == set(FILES) - {mine} - set(read_cache(root))
        done = put(artifact, root)
        assert paths(done.kept) == {mine}
        assert read_cache(root) == FILES | {mine: content, "own": b"own"}


def test_an_empty_file_gives_way(artifact: Snapshot, root: Path) -> None:
    torn = sorted(FILES)[4]
    write_cache(root, {torn: b""})
    assert torn in paths(missing(KIND, artifact.manifest, root))
    assert torn in paths(put(artifact, root).written)
    assert read_cache(root) == FILES


def test_a_chunk_that_is_damaged_lets_nothing_be_seen(artifact: Snapshot, root: Path) -> None:
    for index in (0, len(FILES) - 2):
        contents = contents_of(artifact)
        damaged = bytearray(contents[index])
        damaged[-1:] = b"?"
        contents[index] = memoryview(damaged)
        with pytest.raises(ArtifactInvalid, match="checksum"):
            install(KIND, artifact.manifest, root, contents)
        assert not root.exists()


@pytest.mark.parametrize("change", [1, -1])
def test_a_file_of_another_size_is_refused(artifact: Snapshot, root: Path, change: int) -> None:
    contents = contents_of(artifact)
    contents[2] = memoryview(bytes(contents[2]) + b"x" if change > 0 else bytes(contents[2])[:change])
    with pytest.raises(ArtifactInvalid, match="bytes"):
        install(KIND, artifact.manifest, root, contents)
    assert not root.exists()


def test_a_file_whose_chunks_fit_and_whose_sum_does_not_is_refused(artifact: Snapshot, root: Path) -> None:
    files = list(artifact.manifest.files)
    assert files[0].size > artifact.manifest.chunk_size
    files[0] = dataclasses.replace(files[0], checksum="00000000")
    with pytest.raises(ArtifactInvalid, match="source"):
        install(KIND, dataclasses.replace(artifact.manifest, files=tuple(files)), root, contents_of(artifact))


def test_what_is_missing_must_be_given(artifact: Snapshot, root: Path) -> None:
    contents = contents_of(artifact)
    del contents[5]
    with pytest.raises(ArtifactError, match="1 files have not been fetched"):
        install(KIND, artifact.manifest, root, contents)
    assert read_cache(root) == {}
    with pytest.raises(ArtifactInvalid, match="not in the manifest"):
        install(KIND, artifact.manifest, root, {99: memoryview(b"")})


def test_bytes_that_fit_the_checksum_and_were_not_signed_are_refused(artifact: Snapshot, root: Path) -> None:
    digests = [bytes(32)] * len(FILES)
    with pytest.raises(ArtifactInvalid, match="forged"):
        install(KIND, artifact.manifest, root, contents_of(artifact), verdict=Verdict(True, "signed", digests))
    assert not root.exists()


def test_material_that_is_no_cache_is_refused(root: Path) -> None:
    manifest = SealedManifest(SourceType.WEIGHTS, 4_096, (), ())
    for refused in (lambda: missing(KIND, manifest, root), lambda: install(KIND, manifest, root, {})):
        with pytest.raises(ArtifactInvalid, match="not a cache"):
            refused()


def test_litter_of_a_source_is_not_installed(artifact: Snapshot, root: Path) -> None:
    manifest = manifest_of("/a/x.lock", b"")
    assert missing(KIND, manifest, root) == ()
    assert paths(install(KIND, manifest, root, {}).foreign) == {"a/x.lock"}
    ours = manifest_of("/.modelexpress/index.json", b"")
    assert paths(install(KIND, ours, root, {0: memoryview(b"")}).foreign) == {".modelexpress/index.json"}
    assert read_cache(root) == {}


# ---- what is seen, and how


def test_permissions_and_times_are_sane(artifact: Snapshot, root: Path) -> None:
    old = os.umask(0o022)
    try:
        install(KIND, artifact.manifest, root, contents_of(artifact), mtimes=dict(enumerate(artifact.mtimes)))
    finally:
        os.umask(old)
    for file, mtime in zip(artifact.manifest.files, artifact.mtimes, strict=True):
        found = (root / file.path[1:]).stat()
        assert stat.S_IMODE(found.st_mode) == (0o755 if ".so" in file.path else 0o644)
        assert found.st_mtime_ns == mtime
    assert stat.S_IMODE((root / ".modelexpress").stat().st_mode) == 0o700


def test_files_that_refer_to_others_come_after_them(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = json.dumps({"child_paths": {"k.cubin": "/elsewhere/K/k.cubin"}}).encode()
    files = {"K/__grp__k.json": group, "K/k.cubin": b"binary", "K/z.json": b"{}"}
    order = []
    move = staging._move

    def noting(source: int, number: str, folder: int, name: str) -> bool:
        order.append(name)
        return move(source, number, folder, name)

    monkeypatch.setattr(staging, "_move", noting)
    with take_snapshot(KIND, write_cache(tmp_path / "source", files), 4_096) as snapshot:
        put(snapshot, root)
        assert order == ["k.cubin", "z.json", "__grp__k.json"]
        # The group names the files of this host, and counts as what the source sealed.
        assert json.loads((root / "K/__grp__k.json").read_bytes())["child_paths"] == {
            "k.cubin": str(root / "K/k.cubin")
        }
        assert paths(put(snapshot, root).present) == set(files)


def test_a_full_disk_leaves_the_cache_as_it_was(
    artifact: Snapshot, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "write", fail)
        with pytest.raises(ArtifactError, match="No space left"):
            put(artifact, root)
    assert read_cache(root) == {}
    assert not (root / ".modelexpress" / "staging").exists()
    put(artifact, root)
    assert read_cache(root) == FILES


def test_a_cache_that_can_only_be_read(artifact: Snapshot, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(root, FILES)
    (root / ".modelexpress").write_bytes(b"in the way, as a file system that is mounted read-only would be")
    assert missing(KIND, artifact.manifest, root) == ()
    with pytest.raises(ArtifactError, match="remove it"):
        put(artifact, root)


# ---- nothing outside the root


@pytest.mark.parametrize("path", ["/../evil", "/a/../../evil", "//evil", "/a/./../../evil"])
def test_the_manifest_parser_is_not_the_only_guard(path: str, root: Path) -> None:
    manifest = manifest_of(path, b"")
    with pytest.raises(ArtifactInvalid, match="out of the cache"):
        install(KIND, manifest, root, {0: memoryview(b"")})
    assert not list(root.parent.rglob("evil"))


def test_links_are_not_written_through(artifact: Snapshot, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "target"
    target.write_bytes(b"untouched")
    root.mkdir(parents=True)
    (root / "0").symlink_to(outside)
    (root / "7").mkdir()
    (root / "7" / "k").symlink_to("../../../outside")
    (root / "1").mkdir()
    (root / "1" / "kernel-00001").mkdir()
    (root / "1" / "kernel-00001" / "code.bin").symlink_to(target)
    (root / "2").write_bytes(b"a file in place of a folder")
    done = put(artifact, root)
    behind = {path for path in FILES if path.startswith(("0/", "7/", "2/")) or path == "1/kernel-00001/code.bin"}
    assert paths(done.kept) == behind
    assert paths(done.written) == set(FILES) - behind
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"target": b"untouched"}
    assert missing(KIND, artifact.manifest, root) == ()


def test_a_link_that_appears_at_the_last_moment_stops_it(
    artifact: Snapshot, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    commit = Staging.commit

    def attacked(self: Staging, artifact_id: str, files: list[StagedFile]) -> None:
        commit(self, artifact_id, files)
        (root / "3").symlink_to(outside)

    monkeypatch.setattr(Staging, "commit", attacked)
    with pytest.raises(ArtifactError, match="link"):
        put(artifact, root)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", [".modelexpress", ".modelexpress/staging"])
def test_our_own_folder_is_no_way_out(artifact: Snapshot, root: Path, tmp_path: Path, name: str) -> None:
    outside = write_cache(tmp_path / "outside", {"precious": b"1", "plan.json": b"2"})
    (root / name).parent.mkdir(parents=True, mode=0o700)
    (root / name).symlink_to(outside)
    with pytest.raises(ArtifactError):
        put(artifact, root)
    assert read_cache(outside) == {"precious": b"1", "plan.json": b"2"}


def test_a_folder_of_ours_that_others_can_write_to_is_refused(artifact: Snapshot, root: Path) -> None:
    root.mkdir(parents=True)
    (root / ".modelexpress").mkdir()
    (root / ".modelexpress").chmod(0o777)
    with pytest.raises(ArtifactError, match="this user alone"):
        put(artifact, root)


# ---- the index


def test_the_index_spares_the_reading_and_a_changed_file_is_noticed(
    artifact: Snapshot, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(artifact, root)
    reads = 0

    def counting(descriptor: int, buffer: bytearray) -> str:
        nonlocal reads
        reads += 1
        return file_checksum(descriptor, buffer)

    monkeypatch.setattr(compare, "file_checksum", counting)
    assert missing(KIND, artifact.manifest, root) == ()
    assert reads == 0
    changed = root / sorted(FILES)[2]
    times = changed.stat()
    changed.write_bytes(changed.read_bytes()[::-1])
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert paths(put(artifact, root).kept) == {sorted(FILES)[2]}
    assert reads == 1


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"version":1}', b'{"version":1,"files":{"/marker":[],"/7/k/lib.so":3}}', b"[" * 9_999],
)
def test_an_index_that_is_damaged_is_done_without(artifact: Snapshot, root: Path, damage: bytes) -> None:
    put(artifact, root)
    index = root / ".modelexpress" / "index.json"
    assert index.stat().st_size
    index.write_bytes(damage)
    assert missing(KIND, artifact.manifest, root) == ()
    (root / ".modelexpress" / "index.json").unlink(missing_ok=True)
    assert paths(put(artifact, root).present) == set(FILES)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_is_there_before_every_file_is_whole_afterwards(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = st.sampled_from(["a", "b", "c/a", "c/b", "d/e/f"])
    theirs = data.draw(st.dictionaries(names, st.binary(max_size=40)))
    mine = data.draw(st.dictionaries(names, st.binary(max_size=40)))
    root = write_cache(folder / "mine", mine)
    root.mkdir(exist_ok=True)
    write_cache(folder / "theirs", theirs).mkdir(exist_ok=True)
    with take_snapshot(KIND, folder / "theirs", 16) as snapshot:
        wanted = missing(KIND, snapshot.manifest, root)
        install(KIND, snapshot.manifest, root, {file.index: snapshot.content(file.index) for file in wanted})
    assert read_cache(root) == theirs | {
        path: content for path, content in mine.items() if content or not theirs.get(path)
    }
