"""What is copied to memory that is a file's goes into the file, and is seen through the mapping."""

import errno
import gc
import os
from pathlib import Path

import pytest

from modelexpress.memory import HostArena
from modelexpress.memory.file_backed import FileMapping, address_of, file_behind, send, start_writing

PAGE = 4096
MIB = 1 << 20


def mapped(path: Path, nbytes: int) -> FileMapping:
    path.write_bytes(bytes(nbytes))
    return FileMapping(path, nbytes)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_range_is_found_as_long_as_it_is_mapped(tmp_path: Path) -> None:
    before = descriptors()
    first, second = mapped(tmp_path / "first", 3 * PAGE), mapped(tmp_path / "second", PAGE)
    address, other = address_of(first), address_of(second)
    found = file_behind(address + 5, 100)
    assert found is not None
    assert found[1] == 5
    assert os.fstat(found[0]).st_ino == (tmp_path / "first").stat().st_ino
    assert file_behind(address, 3 * PAGE + 1) is None
    assert file_behind(address - 1, 2) is None
    del first
    gc.collect()
    assert file_behind(address, 1) is None
    assert file_behind(other, 1) is not None
    second.close()
    second.close()
    assert file_behind(other, 1) is None
    assert descriptors() == before


def test_a_file_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    (tmp_path / "empty").touch()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises((OSError, ValueError)):
            FileMapping(path, PAGE)
    assert descriptors() == before


@pytest.mark.parametrize("refused", [None, errno.EINVAL], ids=["in the kernel", "through a buffer"])
def test_bytes_are_sent_between_memory_and_files_at_any_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(refused, "refused")

    if refused is not None:
        monkeypatch.setattr(os, "sendfile", refuse)
    data = os.urandom(3 * MIB)
    arena = HostArena(len(data), fill=lambda descriptor: os.pwrite(descriptor, data, 0))
    assert arena.region.descriptor is not None
    content = mapped(tmp_path / "file", 4 * MIB)
    out, offset = file_behind(address_of(content) + 77, 2 * MIB) or (-1, -1)
    assert send(out, offset, arena.region.descriptor, 1234, 2 * MIB) == 2 * MIB
    start_writing(address_of(content), 4 * MIB)
    assert content[77 : 77 + 2 * MIB] == data[1234 : 1234 + 2 * MIB]
    assert not any(content[:77])
    assert send(out, 0, arena.region.descriptor, len(data) - 10, 100) == 10, "the source ends there"


def test_what_fails_for_another_reason_is_raised(tmp_path: Path) -> None:
    content = mapped(tmp_path / "file", PAGE)
    out, _ = file_behind(address_of(content), 1) or (-1, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        send(out, 0, 99_999, 0, 1)


def test_an_arena_that_was_filled_is_sealed_all_the_same() -> None:
    arena = HostArena(8, fill=lambda descriptor: os.pwrite(descriptor, b"01234567", 0))
    assert arena.region.descriptor is not None
    with pytest.raises(PermissionError):
        os.pwrite(arena.region.descriptor, b"x", 0)
    assert bytes(arena.take(8)) == b"01234567"


def test_an_arena_that_cannot_be_filled_leaves_nothing() -> None:
    def fail(descriptor: int) -> None:
        raise EOFError

    before = descriptors()
    with pytest.raises(EOFError):
        HostArena(8, fill=fail)
    assert descriptors() == before
