"""Snapshots: what belongs, whole, at one moment, whatever is done to the cache meanwhile."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelexpress.artifacts import snapshot as snapshots
from modelexpress.artifacts.checksum import checksum, checksums
from modelexpress.artifacts.folders import Folders, regular_files
from modelexpress.artifacts.snapshot import Snapshot, take_snapshot
from modelexpress.errors import ArtifactError, ArtifactInvalid, CacheBusy, ConfigurationError
from tests.support.caches import PlainKind, cache_files, write_cache

KIND = PlainKind()


def held(snapshot: Snapshot) -> dict[str, bytes]:
    """Return what a snapshot holds, by relative path."""
    return {file.path[1:]: bytes(snapshot.content(file.index)) for file in snapshot.manifest.files}


def after_reading(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[str, int], None]) -> list[str]:
    """Call `meddle` with the path of each file that was just read, and how many were read before it."""
    reads: list[str] = []
    fill = snapshots._fill

    def meddling(folders: Folders, path: str, view: memoryview) -> bool:
        done = fill(folders, path, view)
        reads.append(path)
        meddle(path, len(reads) - 1)
        return done

    monkeypatch.setattr(snapshots, "_fill", meddling)
    return reads


def test_it_holds_every_file_with_its_checksums(tmp_path: Path) -> None:
    files = cache_files(20, 1_000) | {"large": bytes(range(256)) * 40}
    with take_snapshot(KIND, write_cache(tmp_path, files), 4_096) as snapshot:
        assert held(snapshot) == files
        manifest = snapshot.manifest
        for file in manifest.files:
            content = memoryview(files[file.path[1:]])
            chunks = [chunk for chunk in manifest.chunks if chunk.file_index == file.index]
            assert (file.checksum, [chunk.checksum for chunk in chunks]) == checksums(content, 4_096)
            for chunk in chunks:
                assert chunk.checksum == checksum(content[chunk.offset : chunk.offset + chunk.length])
            assert snapshot.mtimes[file.index] == (tmp_path / file.path[1:]).stat().st_mtime_ns
            assert snapshot.offsets[file.index] % 64 == 0


def test_the_checksum_is_crc32c() -> None:
    # The check value of the Castagnoli polynomial: RFC 3720, B.4, has others; this one is in every catalogue of CRCs.
    assert checksum(b"123456789") == "e3069283"
    assert checksum(b"") == "00000000"


def test_equal_caches_have_equal_ids_and_times_do_not_matter(tmp_path: Path) -> None:
    ids: list[str] = []
    for name in ("a", "b"):
        root = write_cache(tmp_path / name, cache_files(5, 100))
        os.utime(root / "marker", ns=(1, len(ids)))
        with take_snapshot(KIND, root, 4_096) as snapshot:
            ids.append(snapshot.manifest.artifact_id)
    assert ids[0] == ids[1]


def test_links_devices_sockets_and_litter_stay_behind(tmp_path: Path) -> None:
    root = write_cache(tmp_path / "cache", {"a/real": b"r", "a/x.lock": b"", "tmp.pid_3_x/k": b"half", "b.tmp": b""})
    outside = write_cache(tmp_path / "outside", {"secret": b"s"})
    (root / "file-link").symlink_to(outside / "secret")
    (root / "folder-link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / "back\\slash").write_bytes(b"unportable")
    (root / "new\nline").write_bytes(b"unportable")
    with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(root):
        sock.bind("socket")
        with take_snapshot(KIND, root, 4_096) as snapshot:
            assert held(snapshot) == {"a/real": b"r"}


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    write_cache(tmp_path / "volume", {"k": b"1"})
    (tmp_path / "cache").symlink_to(tmp_path / "volume")
    with take_snapshot(KIND, tmp_path / "cache", 4_096) as snapshot:
        assert held(snapshot) == {"k": b"1"}


def test_an_empty_cache_has_an_empty_manifest(tmp_path: Path) -> None:
    with take_snapshot(KIND, tmp_path, 4_096) as snapshot:
        assert snapshot.manifest.files == ()


def test_reading_leaves_the_times_of_access_alone(tmp_path: Path) -> None:
    root = write_cache(tmp_path, {"k": b"1"})
    os.utime(root / "k", ns=(1, 2))
    take_snapshot(KIND, root, 4_096).close()
    assert (root / "k").stat().st_atime_ns == 1


@pytest.mark.parametrize("size", [1_000, 1_001, 900, 0])
def test_a_file_that_changes_meanwhile_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    files = cache_files(10, 1_000)
    root = write_cache(tmp_path, files)
    changed = sorted(files)[3]

    def meddle(path: str, before: int) -> None:
        if before == 5:
            (root / changed).write_bytes(b"n" * size)

    reads = after_reading(monkeypatch, meddle)
    with take_snapshot(KIND, root, 4_096) as snapshot:
        assert held(snapshot) == files | {changed: b"n" * size}
    assert reads == [f"/{path}" for path in sorted(files)] + [f"/{changed}"]


def test_files_that_come_go_and_are_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cache_files(10, 1_000)
    root = write_cache(tmp_path, files)
    gone, late, replaced = sorted(files)[2], sorted(files)[8], sorted(files)[4]

    def meddle(path: str, before: int) -> None:
        if before == 6:
            (root / gone).unlink()
            (root / late).unlink()
            (root / "new").write_bytes(b"new")
            (root / "other").write_bytes(b"o" * 1_000)
            os.utime(root / "other", ns=(0, (root / replaced).stat().st_mtime_ns))
            (root / "other").rename(root / replaced)

    after_reading(monkeypatch, meddle)
    with take_snapshot(KIND, root, 4_096) as snapshot:
        expected = files | {"new": b"new", replaced: b"o" * 1_000}
        assert held(snapshot) == {path: content for path, content in expected.items() if path not in (gone, late)}


def test_a_cache_that_never_rests_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_PAUSES", (0.0, 0.0, 0.0))
    root = write_cache(tmp_path, cache_files(3, 100))

    def grow(_: str, before: int) -> None:
        (root / "growing").write_bytes(b"g" * before)

    reads = after_reading(monkeypatch, grow)
    with pytest.raises(CacheBusy, match="3 times"):
        take_snapshot(KIND, root, 4_096)
    assert len(reads) < 10


def test_a_writer_of_another_thread_never_tears_a_file(tmp_path: Path) -> None:
    root = write_cache(tmp_path, cache_files(50, 1_000))
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set() and number < 200:
            (root / "torn").write_bytes(b"%d" % (number % 10) * 300_000)
            number += 1

    writer = threading.Thread(target=rewrite, name="writer")
    writer.start()
    try:
        with take_snapshot(KIND, root, 4_096) as snapshot:
            assert len(set(held(snapshot).get("torn", b"0"))) <= 1
    except CacheBusy:
        pass
    finally:
        stop.set()
        writer.join()


def test_what_cannot_be_sealed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        take_snapshot(KIND, tmp_path / "nowhere", 4_096)
    for size in (0, -1, (4 << 30) + 1):
        with pytest.raises(ConfigurationError, match="chunks"):
            take_snapshot(KIND, tmp_path, size)
    monkeypatch.setattr("modelexpress.artifacts.sealed.MAX_FILES", 2)
    with pytest.raises(ArtifactInvalid, match="files"):
        take_snapshot(KIND, write_cache(tmp_path, cache_files(3, 10)), 4_096)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    root = write_cache(tmp_path, cache_files(30, 10))
    before = len(os.listdir("/proc/self/fd"))
    take_snapshot(KIND, root, 4_096).close()
    walk = regular_files(root)
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before
