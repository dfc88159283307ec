"""Installations of real processes: at once, and killed in the middle."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.artifacts.install import install, missing
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.snapshot import Snapshot
from modelexpress.errors import CacheBusy
from tests.support.cache_installer import sealed_cache
from tests.support.caches import cache_files, read_cache
from tests.support.children import Child

COUNT = 40
FILES = cache_files(COUNT, 2_000)


@pytest.fixture
def artifact(tmp_path: Path) -> Iterator[Snapshot]:
    with sealed_cache(tmp_path / "own", COUNT) as snapshot:
        yield snapshot


def installer(tmp_path: Path, root: Path, name: str, stop: int = -2) -> Child:
    return Child("tests.support.cache_installer", str(tmp_path / name), str(root), str(COUNT), str(stop))


def killed_at(tmp_path: Path, root: Path, stop: int) -> None:
    """Let a process install until it stops, and kill it there."""
    with installer(tmp_path, root, "theirs", stop) as child:
        assert child.line() == "ready"
        child.tell("go")
        assert child.line() in ("moving", "staged")
        child.kill()


def finished(snapshot: Snapshot, root: Path) -> int:
    """Install the rest; return how many files were fetched for it."""
    wanted = missing(Triton(), snapshot.manifest, root)
    install(Triton(), snapshot.manifest, root, {file.index: snapshot.content(file.index) for file in wanted})
    return len(wanted)


def test_two_targets_at_once_make_one_cache(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with installer(tmp_path, root, "a") as one, installer(tmp_path, root, "b") as other:
        for child in (one, other):
            assert child.line() == "ready"
        for child in (one, other):
            child.tell("go")
        counts = [tuple(map(int, child.line().split())) for child in (one, other)]
    assert read_cache(root) == FILES
    assert sorted(written for written, _, _ in counts) == [0, len(FILES)]
    assert all(kept == 0 for _, _, kept in counts)


def test_a_death_while_files_are_staged_leaves_the_cache_as_it_was(tmp_path: Path, artifact: Snapshot) -> None:
    root = tmp_path / "cache"
    killed_at(tmp_path, root, -1)
    assert read_cache(root) == {}
    assert finished(artifact, root) == len(FILES)
    assert read_cache(root) == FILES
    assert not (root / ".modelexpress" / "staging").exists()


@pytest.mark.parametrize("moves", [0, 1, COUNT // 2, COUNT])
def test_a_death_while_files_are_moved_is_made_good(tmp_path: Path, artifact: Snapshot, moves: int) -> None:
    root = tmp_path / "cache"
    killed_at(tmp_path, root, moves)
    there = read_cache(root)
    assert len(there) == moves
    assert all(FILES[path] == content for path, content in there.items())
    # The next one needs no byte from its source.
    assert finished(artifact, root) == 0
    assert read_cache(root) == FILES
    assert not (root / ".modelexpress" / "staging").exists()


def test_what_was_damaged_after_a_death_is_fetched_again(tmp_path: Path, artifact: Snapshot) -> None:
    root = tmp_path / "cache"
    killed_at(tmp_path, root, 3)
    staged = next(path for path in (root / ".modelexpress" / "staging").iterdir() if path.name.isdigit())
    staged.write_bytes(b"")
    assert finished(artifact, root) == len(FILES) - 3
    assert read_cache(root) == FILES


@pytest.mark.parametrize(
    "plan", [b"", b"{", b"[]", b'{"version":1,"artifact_id":"x","files":[[0,"/../evil","0","0"]]}']
)
def test_a_plan_that_makes_no_sense_is_forgotten(tmp_path: Path, artifact: Snapshot, plan: bytes) -> None:
    root = tmp_path / "cache"
    killed_at(tmp_path, root, 3)
    (root / ".modelexpress" / "staging" / "plan.json").write_bytes(plan)
    assert finished(artifact, root) == len(FILES) - 3
    assert read_cache(root) == FILES
    assert not (tmp_path / "evil").exists()


def test_another_artifact_does_not_finish_what_nobody_vouches_for(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    killed_at(tmp_path, root, 3)
    with sealed_cache(tmp_path / "other", 2) as other:
        finished(other, root)
    assert 3 <= len(read_cache(root)) <= 3 + 3
    assert not (root / ".modelexpress" / "staging").exists()


def test_a_target_waits_for_the_other_and_not_for_ever(tmp_path: Path, artifact: Snapshot) -> None:
    root = tmp_path / "cache"
    with installer(tmp_path, root, "theirs", 2) as child:
        assert child.line() == "ready"
        child.tell("go")
        assert child.line() == "moving"
        # Asking what is missing does not wait.
        assert len(missing(Triton(), artifact.manifest, root)) == len(FILES) - 2
        contents = {file.index: artifact.content(file.index) for file in artifact.manifest.files}
        with pytest.raises(CacheBusy, match="another process"):
            install(Triton(), artifact.manifest, root, contents, patience=0.1)
        child.tell("go on")
        assert child.line() == f"{len(FILES)} 0 0"
    assert finished(artifact, root) == 0


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path, artifact: Snapshot) -> None:
    root = tmp_path / "cache"
    (root / ".modelexpress").mkdir(parents=True, mode=0o700)
    lock = root / ".modelexpress" / "install.lock"
    held = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    lock.unlink()
    assert finished(artifact, root) == len(FILES)
    os.close(held)
