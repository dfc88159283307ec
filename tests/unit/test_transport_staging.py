"""Device memory travels in blocks: every byte once, one copied while another is used, and nothing is left behind."""

from contextlib import ExitStack, closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import DeviceError
from modelexpress.transport.staging import MOST_PINNED_BYTES, PIECE_BYTES, SLOTS, Range, Stage, pack
from tests.support.driver_double import DriverDouble
from tests.support.read_target import Target
from tests.support.transport_source import content

ODD = 3 * PIECE_BYTES + 17


def filled(nbytes: int) -> Target:
    """Return memory that stands for a device's."""
    target = Target(nbytes)
    target.bytes[:] = content(0, nbytes)
    return target


def under_way(double: DriverDouble) -> list[int]:
    """Return the bytes of every copy that nothing has waited for."""
    return [nbytes for stream in double.streams for _, _, nbytes in stream.waiting]


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 300)), max_size=30), st.integers(1, 100))
def test_pieces_hold_every_byte_once_and_in_order(ranges: list[Range], most: int) -> None:
    pieces = list(pack(ranges, most))
    places = [address + byte for piece in pieces for _, address, nbytes in piece.rows for byte in range(nbytes)]
    assert places == [address + byte for address, nbytes in ranges for byte in range(nbytes)]
    assert all(piece.nbytes == most for piece in pieces[:-1])
    for piece in pieces:
        begins = [0, *np.cumsum([nbytes for *_, nbytes in piece.rows]).tolist()]
        assert [at for at, *_ in piece.rows] == begins[:-1]
        assert 0 < piece.nbytes == begins[-1] <= most


def test_what_is_read_is_what_the_device_holds() -> None:
    double, memory = DriverDouble(), filled(ODD)
    ranges = [(memory.address, 5), (memory.address, 0), (memory.address + 100, ODD - 100), (memory.address + 7, 9)]
    with closing(Stage(double, 0)) as stage:
        blocks = [bytes(block) for block in stage.read(ranges)]
    assert b"".join(blocks) == memory.bytes[:5] + memory.bytes[100:] + memory.bytes[7:16]
    assert [len(block) for block in blocks[:-1]] == [PIECE_BYTES] * (len(blocks) - 1)


def test_the_device_fills_the_next_block_while_one_is_used() -> None:
    double, memory = DriverDouble(), filled(ODD)
    with closing(Stage(double, 0)) as stage:
        ahead = [under_way(double) for _ in stage.read([(memory.address, ODD)])]
    assert ahead == [[PIECE_BYTES], [PIECE_BYTES], [17], []]


def test_what_is_written_is_in_place_at_the_end() -> None:
    double, memory = DriverDouble(), Target(ODD)
    expected = memoryview(content(1, ODD))
    ranges = [(memory.address + 11, ODD - 11), (memory.address, 11)]
    with closing(Stage(double, 0)) as stage:
        position = 0
        for block in stage.write(ranges):
            block[:] = expected[position : position + len(block)]
            position += len(block)
        assert memory.bytes[11:] + memory.bytes[:11] == expected


def test_a_block_is_filled_while_the_device_takes_the_one_before() -> None:
    double, memory = DriverDouble(), Target(ODD)
    with closing(Stage(double, 0)) as stage:
        behind = [under_way(double) for _ in stage.write([(memory.address, ODD)])]
    assert behind == [[], [PIECE_BYTES], [PIECE_BYTES], [PIECE_BYTES]]


@pytest.mark.parametrize("direction", ["read", "write"])
def test_stopping_in_the_middle_leaves_nothing_behind(direction: str) -> None:
    double, memory = DriverDouble(), Target(ODD)
    stage = Stage(double, 0)
    for number, _ in enumerate(getattr(stage, direction)([(memory.address, ODD)])):
        if number == 1:
            break
    assert under_way(double)
    stage.close()
    stage.close()
    assert not double.streams
    assert not double.buffers


def test_page_locked_memory_is_bounded_and_more_threads_work_without() -> None:
    double, memory = DriverDouble(), filled(100)
    most = MOST_PINNED_BYTES // PIECE_BYTES
    for _ in range(2):
        with ExitStack() as stack:
            stages = [stack.enter_context(closing(Stage(double, 0))) for _ in range(most // SLOTS + 3)]
            assert len(double.buffers) == most
            for stage in stages:
                assert [bytes(block) for block in stage.read([(memory.address, 100)])] == [memory.bytes]
        assert not double.buffers


def test_a_device_that_fails_is_an_error_and_everything_is_given_back() -> None:
    double, memory = DriverDouble(copies=2), Target(ODD)
    with pytest.raises(DeviceError, match="illegal memory access"), closing(Stage(double, 0)) as stage:
        list(stage.read([(memory.address, ODD)]))
    assert not double.streams
    assert not double.buffers
    with pytest.raises(DeviceError, match="ordinal 1"):
        Stage(double, 1)
    assert not double.buffers
