"""Making pages ready changes no byte, inside the range or outside."""

import ctypes
import mmap

from hypothesis import given
from hypothesis import strategies as st

from modelexpress.transport.pages import make_ready

PAGES = 16


@given(st.integers(0, PAGES * mmap.PAGESIZE), st.integers(0, PAGES * mmap.PAGESIZE), st.booleans())
def test_bytes_stay_as_they_are(first: int, last: int, fresh: bool) -> None:
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if not fresh:
        memory[:] = b"x" * len(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    make_ready(address + min(first, last), max(first, last) - min(first, last))
    assert memory[:] == (b"\0" if fresh else b"x") * len(memory)


def test_memory_that_is_not_there_is_left_alone() -> None:
    make_ready(0, 1 << 30)
    make_ready(mmap.PAGESIZE, 0)
