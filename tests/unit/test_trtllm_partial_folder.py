"""The folder that a checkpoint is received into: who may use it, and what a failure leaves."""

import errno
import fcntl
import mmap
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from modelexpress.engines.trtllm.errors import NoSpace
from modelexpress.engines.trtllm.partial_folder import PartialFolder, make_durable, partial_name
from modelexpress.errors import CheckpointError
from modelexpress.weights.staging_folder import PREFIX
from tests.support.children import Child

NAME = "checkpoint"
HEADER = b"header"
SIZE = 4096
FILES = {"config.json": b"{}"}


def fill(folder: PartialFolder, ranks: int = 2) -> None:
    for rank in range(ranks):
        file = folder.create(rank, HEADER, SIZE)
        file.content[len(HEADER) :] = bytes([rank + 1]) * (SIZE - len(HEADER))


def kept(folder: PartialFolder, ranks: int = 2) -> list[bytes]:
    found = [folder.kept(rank, HEADER, SIZE) for rank in range(ranks)]
    return [file.content[-2:] for file in found if file is not None]


def test_a_second_load_is_told_and_a_third_is_not(tmp_path: Path) -> None:
    told = pytest.raises(CheckpointError, match="another load writes into")
    with PartialFolder(tmp_path, NAME), told, PartialFolder(tmp_path, NAME):
        pass
    with PartialFolder(tmp_path, NAME):
        pass


def test_a_folder_that_another_load_removed_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[bool] = []

    def end_the_other(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            shutil.rmtree(tmp_path / partial_name("checkpoint"))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", end_the_other)
    with PartialFolder(tmp_path, NAME) as folder:
        with pytest.raises(CheckpointError, match="another load writes into"), PartialFolder(tmp_path, NAME):
            pass
        fill(folder)
        folder.commit(2, FILES)
    assert removed


def test_a_file_system_without_locks_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:  # as NFS does for folders, which cannot be mounted here
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        assert folder.commit(2, FILES) == tmp_path / NAME
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_place_that_no_folder_can_be_moved_to_is_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("a file")
    with pytest.raises(CheckpointError, match="is a file; name a folder"), PartialFolder(tmp_path, NAME):
        pass
    with pytest.raises(CheckpointError, match="mount point"), PartialFolder(Path("/"), "proc"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "nothing was begun"


def test_what_was_received_outlives_a_commit_that_fails(tmp_path: Path) -> None:
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        (tmp_path / NAME).write_text("came meanwhile")
        with pytest.raises(CheckpointError, match="is a file"):
            folder.commit(2, FILES)
    (tmp_path / NAME).unlink()
    with PartialFolder(tmp_path, NAME) as folder:
        assert kept(folder) == [b"\1\1", b"\2\2"]
        folder.commit(2, FILES)
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == [
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]


def test_what_was_received_outlives_a_disk_that_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        with monkeypatch.context() as failing:
            failing.setattr(os, "fsync", fail)
            with pytest.raises(CheckpointError, match="cannot complete"):
                folder.commit(2, FILES)
        assert kept(folder) == [b"\1\1", b"\2\2"]
        assert [path.name for path in tmp_path.iterdir()] == [partial_name("checkpoint")]


def fail(_: int) -> None:
    """Fail as a disk does that is broken, which none is here."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_ranks_that_are_complete_outlive_one_that_is_missing(tmp_path: Path) -> None:
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        with pytest.raises(CheckpointError, match="cannot complete"):
            folder.commit(3, FILES)
        assert kept(folder) == [b"\1\1", b"\2\2"]
    assert [path.name for path in tmp_path.iterdir()] == [partial_name("checkpoint")]


@pytest.mark.parametrize("before", ["nothing", "replace"])
def test_a_kill_at_any_step_loses_nothing_and_leaves_nothing(tmp_path: Path, before: str) -> None:
    steps = 0
    with Child("tests.support.trtllm_commit_kills", str(tmp_path), before) as killing:
        while (said := killing.answer()) != "through":
            assert said["left"] in ((1, 2) if before == "replace" else (0, 2)), "what is in place is whole"
            assert said["next"] == 0, "the next load had all that it needs"
            assert (said["then"], said["listed"]) == (2, [NAME])
            steps += 1
    assert steps > 6


def test_a_file_with_a_second_name_is_compared_where_no_folder_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        (left := tmp_path / f"{PREFIX}1-left").mkdir()
        (left / "rank0.safetensors").hardlink_to(folder.path / "rank0.safetensors")

    def refuse(*_: int) -> None:  # as NFS does for folders
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with PartialFolder(tmp_path, NAME) as folder:
        assert folder.kept(0, HEADER, SIZE) is None, "nobody writes to a file that may belong to a checkpoint"
        (found,) = folder.in_place(0, HEADER, SIZE)
        assert found.content[-2:] == b"\1\1"
        assert folder.adopt(0, found)
        assert folder.commit(2, FILES) == tmp_path / NAME


def test_a_file_system_without_second_names_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # as some that programs serve do, which cannot be mounted here
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder)
        with pytest.raises(CheckpointError, match="cannot complete"):
            folder.commit(3, FILES)
        assert kept(folder) == [b"\1\1", b"\2\2"]
        folder.commit(2, FILES)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_link_to_another_file_system_is_followed(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert Path(elsewhere).stat().st_dev != tmp_path.stat().st_dev
        (tmp_path / NAME).symlink_to(Path(elsewhere) / "place")
        for _ in range(2):
            with PartialFolder(tmp_path, NAME) as folder:
                assert folder.path.parent == Path(elsewhere)
                fill(folder)
                folder.commit(2, FILES)
            assert [path.name for path in Path(elsewhere).iterdir()] == ["place"]
            assert (tmp_path / NAME / "config.json").read_bytes() == FILES["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_no_space_is_an_error_of_its_own(tmp_path: Path) -> None:
    with PartialFolder(tmp_path, NAME) as folder, pytest.raises(NoSpace, match="free space"):
        folder.create(0, HEADER, 1 << 62)


def test_a_file_that_cannot_be_mapped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PartialFolder(tmp_path, NAME) as folder:
        fill(folder, 1)
        shutil.copytree(folder.path, tmp_path / NAME)

        def refuse(*_: object, **__: object) -> NoReturn:
            # Permissions do not stop root, who may run this.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr(mmap, "mmap", refuse)
        for look in (folder.kept, lambda *which: list(folder.in_place(*which))):
            with pytest.raises(CheckpointError, match=r"cannot map .*rank0\.safetensors: Permission denied"):
                look(0, HEADER, SIZE)


def test_a_file_that_the_disk_did_not_take_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rank0.safetensors"
    file.write_bytes(b"in memory only")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="the disk of"):
        make_durable(file)
    assert not file.exists()
