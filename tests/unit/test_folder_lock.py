"""The lock on a folder: who has it, who is told so, and a folder that is gone."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from modelexpress.weights.folder_lock import is_at, lock_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_one_has_the_lock_until_the_descriptor_is_closed(folder: Path) -> None:
    lock = lock_folder(folder)
    assert lock is not None
    with pytest.raises(BlockingIOError):
        lock_folder(folder)
    os.close(lock)
    again = lock_folder(folder)
    assert again is not None
    os.close(again)


def test_no_folder_no_lock(tmp_path: Path) -> None:
    assert lock_folder(tmp_path / "missing") is None


def test_a_folder_that_was_replaced_before_it_was_locked_is_not_taken_for_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def replace_first(descriptor: int, operation: int) -> None:
        folder.rename(folder.with_name("old"))
        folder.mkdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    assert lock_folder(folder) is None


def test_a_file_system_without_locks_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:  # as NFS does for folders, which cannot be mounted here
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = lock_folder(folder)
    assert lock is not None
    assert is_at(lock, folder)
    os.close(lock)


def test_other_errors_are_raised_and_leave_nothing_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"):
        lock_folder(folder)
    assert len(os.listdir("/proc/self/fd")) == before
