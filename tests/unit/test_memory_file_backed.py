"""What is copied to memory that is a file's goes into the file, and is seen through the mapping."""

import errno
import gc
import os
from pathlib import Path

import pytest

from modelexpress.memory import HostArena
from modelexpress.memory.file_backed import FileMapping, address_of, file_behind, overwrite, send, start_writing

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
    arena = HostArena(len(data))
    overwrite(arena.region.address, memoryview(data))
    content = mapped(tmp_path / "file", 4 * MIB)
    out, offset = file_behind(address_of(content) + 77, 2 * MIB) or (-1, -1)
    assert send(out, offset, arena.descriptor, 1234, 2 * MIB) == 2 * MIB
    start_writing(address_of(content), 4 * MIB)
    assert content[77 : 77 + 2 * MIB] == data[1234 : 1234 + 2 * MIB]
    assert not any(content[:77])
    assert send(out, 0, arena.descriptor, len(data) - 10, 100) == 10, "the source ends there"


def test_what_fails_for_another_reason_is_raised(tmp_path: Path) -> None:
    content = mapped(tmp_path / "file", PAGE)
    out, _ = file_behind(address_of(content), 1) or (-1, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        send(out, 0, 99_999, 0, 1)


def test_an_arena_is_written_to_by_its_file_until_it_is_sealed() -> None:
    arena = HostArena(3 * PAGE)
    content = arena.take(3 * PAGE)
    address = arena.region.address
    assert file_behind(address + PAGE, PAGE) == (arena.descriptor, PAGE)
    overwrite(address + 10, memoryview(b"by the file"))
    writable = file_behind(address, PAGE)
    arena.seal()
    arena.seal()
    assert file_behind(address, PAGE) is None
    overwrite(address + 100, memoryview(b"by the mapping"))
    assert bytes(content[10:21]) == b"by the file"
    assert bytes(content[100:114]) == b"by the mapping"
    assert writable is not None
    source = HostArena(PAGE)
    assert send(*writable, source.descriptor, 0, PAGE) == 0, "whoever looked before goes on by the mapping"


def test_an_arena_that_is_viewed_stays_what_it_was_until_the_last_view_is_gone() -> None:
    before = descriptors()
    arena = HostArena(PAGE)
    address, view = arena.region.address, arena.take(PAGE)
    arena.close()
    assert file_behind(address, PAGE) == (arena.descriptor, 0)
    assert HostArena.holding(address, PAGE) is arena
    del view
    arena.close()
    assert file_behind(address, PAGE) is None
    assert HostArena.holding(address, PAGE) is None
    assert descriptors() == before
    arena = HostArena(PAGE)
    view = arena.take(PAGE)
    address = arena.region.address
    del arena, view
    gc.collect()
    assert file_behind(address, PAGE) is None
    assert descriptors() == before
