"""Arenas hand out aligned blocks of memory that nobody else can change."""

import ctypes
import fcntl
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import ConfigurationError
from modelexpress.memory import ALIGNMENT, HostArena, Region, aligned, memory_view


@given(st.integers(0, 1 << 40))
def test_aligned_rounds_up_to_the_next_multiple(nbytes: int) -> None:
    rounded = aligned(nbytes)
    assert rounded % ALIGNMENT == 0
    assert nbytes <= rounded < nbytes + ALIGNMENT


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_blocks_are_aligned_and_do_not_touch(sizes: list[int]) -> None:
    with HostArena(sum(map(aligned, sizes))) as arena:
        blocks = [arena.take(size) for size in sizes]
        for number, block in enumerate(blocks):
            block[:] = bytes([number + 1]) * len(block)
        assert [len(block) for block in blocks] == sizes
        assert all(block == bytes([number + 1]) * len(block) for number, block in enumerate(blocks))


def test_a_full_arena_says_what_is_left() -> None:
    with HostArena(100) as arena:
        arena.take(10)
        with pytest.raises(ConfigurationError, match="has 36 bytes left, 40 were asked for"):
            arena.take(40)


@pytest.mark.parametrize("nbytes", [-(1 << 70), 1 << 62, 1 << 70])
def test_an_arena_that_cannot_be_made_is_a_configuration_error(nbytes: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError, match="no arena of"):
        HostArena(nbytes)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_region_is_the_memory_behind_its_descriptor() -> None:
    with HostArena(8192) as arena:
        arena.take(8192)[:4] = b"here"
        assert arena.region.descriptor is not None
        assert os.pread(arena.region.descriptor, 4, 0) == b"here"
        assert bytes(arena.region.view()[:4]) == b"here"


def test_nobody_can_write_through_the_descriptor_or_change_its_size() -> None:
    with HostArena(8192) as arena:
        descriptor = arena.region.descriptor
        assert descriptor is not None
        for size in (0, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 8192, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)


def test_views_outlive_the_arena() -> None:
    arena = HostArena(4096)
    block = arena.take(5)
    block[:] = b"alive"
    arena.close()
    arena.close()
    assert bytes(block) == b"alive"


def test_an_empty_arena_has_an_empty_region() -> None:
    with HostArena(0) as arena:
        assert len(arena.take(0)) == 0
        assert len(arena.region.view()) == 0


def test_a_view_of_memory_reads_and_writes_it() -> None:
    memory = ctypes.create_string_buffer(b"0123456789")
    address = ctypes.addressof(memory)
    view = memory_view(address + 2, 4)
    assert bytes(view) == b"2345"
    view[0:2] = b"xy"
    assert memory.raw.startswith(b"01xy45")
    assert len(memory_view(0, 0)) == 0
    assert bytes(Region(address, 3).view()) == b"01x"
