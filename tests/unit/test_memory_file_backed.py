"""What is copied to memory that is a file's goes into the file, and is seen through the mapping."""

import gc
import mmap
import os
from pathlib import Path

import pytest

from modelexpress.memory import HostArena
from modelexpress.memory.file_backed import address_of, back_with_file, can_send, file_behind, send, start_writing


def mapped(path: Path, nbytes: int) -> mmap.mmap:
    path.write_bytes(bytes(nbytes))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), nbytes)


def test_a_range_is_found_as_long_as_it_is_mapped(tmp_path: Path) -> None:
    first, second = mapped(tmp_path / "first", 3 << 12), mapped(tmp_path / "second", 1 << 12)
    for content, name in ((first, "first"), (second, "second")):
        back_with_file(content, tmp_path / name)
    address, other = address_of(first), address_of(second)
    found = file_behind(address + 5, 100)
    assert found is not None
    assert found[1] == 5
    assert os.fstat(found[0]).st_ino == (tmp_path / "first").stat().st_ino
    assert file_behind(address, (3 << 12) + 1) is None
    assert file_behind(address - 1, 2) is None
    del first, content
    gc.collect()
    assert file_behind(address, 1) is None
    assert file_behind(other, 1) is not None


def test_bytes_are_sent_between_memory_and_files_at_any_offset(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    arena = HostArena(len(data), fill=lambda descriptor: os.pwrite(descriptor, data, 0))
    assert arena.region.descriptor is not None
    content = mapped(tmp_path / "file", 4 << 20)
    back_with_file(content, tmp_path / "file")
    out, offset = file_behind(address_of(content) + 77, 2 << 20) or (-1, -1)
    assert send(out, offset, arena.region.descriptor, 1234, 2 << 20) == 2 << 20
    start_writing(address_of(content), 4 << 20)
    assert content[77 : 77 + (2 << 20)] == data[1234 : 1234 + (2 << 20)]
    assert not any(content[:77])
    assert send(out, 0, arena.region.descriptor, len(data) - 10, 100) == 10, "the source ends there"


def test_an_arena_that_was_filled_is_sealed_all_the_same() -> None:
    arena = HostArena(8, fill=lambda descriptor: os.pwrite(descriptor, b"01234567", 0))
    assert arena.region.descriptor is not None
    with pytest.raises(PermissionError):
        os.pwrite(arena.region.descriptor, b"x", 0)
    assert bytes(arena.take(8)) == b"01234567"


def test_an_arena_that_cannot_be_filled_leaves_nothing() -> None:
    def fail(descriptor: int) -> None:
        raise EOFError

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EOFError):
        HostArena(8, fill=fail)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_kernel_cannot_do_is_told_from_what_fails() -> None:
    assert can_send(OSError(5, "input/output error"))
    assert not can_send(OSError(22, "invalid argument"))
