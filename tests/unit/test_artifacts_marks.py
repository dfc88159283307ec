"""One attempt for all processes of a host: seen with real processes, of which some are killed."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.artifacts import marks
from modelexpress.artifacts.marks import FailedRecently, InstalledByOther, Mine, attempt
from modelexpress.errors import ArtifactError
from tests.support.children import Child


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextlib.contextmanager
def rank(root: Path, key: str = "k", ttl: float = 60, wait: float = 30) -> Iterator[Child]:
    with Child("tests.support.pod_attempt", str(root), key, str(ttl), str(wait)) as child:
        assert child.line() == "started"
        yield child


def test_the_first_transfers_and_the_others_wait_for_it(root: Path) -> None:
    with rank(root) as first:
        assert first.line() == "mine"
        with rank(root) as second, rank(root) as third:
            first.tell("succeed")
            assert first.line() == "ended"
            assert second.line() == third.line() == "installed by other"
        with rank(root) as late:
            assert late.line() == "installed by other"


@pytest.mark.parametrize(
    ("how", "reason"), [("raise", "RuntimeError: the source is gone"), ("leave", "without a result")]
)
def test_a_failure_is_made_once_and_seen_by_all(root: Path, how: str, reason: str) -> None:
    with rank(root) as first:
        assert first.line() == "mine"
        with rank(root) as second:
            first.tell(how)
            line = second.line()
        assert line.startswith("failed: ")
        assert reason in line
        with rank(root) as third:
            assert reason in third.line()


def test_a_killed_process_frees_its_attempt(root: Path) -> None:
    with rank(root) as first:
        assert first.line() == "mine"
        with rank(root) as second:
            first.kill()
            assert second.line() == "mine"
            second.tell("succeed")
            assert second.line() == "ended"


def test_a_process_that_was_told_to_end_leaves_no_mark(root: Path) -> None:
    with rank(root) as first:
        assert first.line() == "mine"
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(20) != 0
    with rank(root) as second:
        assert second.line() == "mine"


def test_waiting_has_an_end(root: Path) -> None:
    with rank(root) as first:
        assert first.line() == "mine"
        with rank(root, wait=0.2) as second:
            assert second.line().startswith("failed: another process")


def test_keys_and_roots_do_not_wait_for_one_another(root: Path, tmp_path: Path) -> None:
    with rank(root, "k") as first, rank(root, "../k") as second, rank(tmp_path / "other", "k") as third:
        assert [child.line() for child in (first, second, third)] == ["mine"] * 3
        first.tell("raise")
        assert first.line() == "raised the source is gone"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "other"}


def outcome(root: Path, ttl: float = 60) -> str:
    with attempt(root, "k", ttl, wait=0) as state:
        return type(state).__name__


def test_a_mark_has_an_end_and_a_boot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with attempt(root, "k") as state:
        assert isinstance(state, Mine)
    assert outcome(root) == "FailedRecently"
    assert outcome(root, ttl=0) == "Mine"
    now = marks._now()
    monkeypatch.setattr(marks, "_now", lambda: now + 59)
    assert outcome(root) == "FailedRecently"
    monkeypatch.setattr(marks, "_now", lambda: now + 61)
    with attempt(root, "k") as state:
        assert isinstance(state, Mine)
        state.succeed(["a/new", "b"])
    with attempt(root, "k") as state:
        assert isinstance(state, InstalledByOther)
        assert 0 <= state.age < 60
        assert state.paths == ("a/new", "b")
    monkeypatch.setattr(marks, "_now", lambda: now)
    assert outcome(root) == "Mine"
    monkeypatch.setattr(marks, "_boot", lambda: "another host, or another start of this one")
    assert outcome(root) == "Mine"


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"boot": 1}', '{"boot":"","time":"soon","succeeded":true}', "[" * 9_999]
)
def test_a_mark_that_is_damaged_does_not_count(root: Path, damage: str) -> None:
    assert outcome(root) == "Mine"
    (mark,) = (root / ".modelexpress").glob("*.mark")
    assert json.loads(mark.read_text())["succeeded"] is False
    mark.write_text(damage)
    assert outcome(root) == "Mine"


def test_a_long_reason_is_cut(root: Path) -> None:
    with contextlib.suppress(RuntimeError), attempt(root, "k"):
        raise RuntimeError("x" * 100_000)
    with attempt(root, "k") as state:
        assert isinstance(state, FailedRecently)
        assert len(state.reason) <= 1_000


def test_a_root_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="make it writable"), attempt(tmp_path / "file" / "cache", "k"):
        pass


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_attempt(root: Path) -> None:
    ours, theirs = os.pipe()
    with attempt(root, "k"):
        child = os.fork()
        if not child:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
    try:
        assert outcome(root, ttl=0) == "Mine"
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(child, 0)
