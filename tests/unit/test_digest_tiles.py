"""Digests put together from tiles, against the definition and against Python's integers."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.transfer import digest_numpy
from modelexpress.transfer.digest_tiles import Tiles, cut_tiles, digests_from_sums
from tests.support.digest_inputs import Column, column, random_bytes

LINE = 1024
PRIME = 2**61 - 1
uint64 = st.integers(0, 2**64 - 1)


def key(index: int) -> int:
    return int(digest_numpy.keys(index, 1)[0])


def lines_of(tiles: Tiles, tile: int, tile_lines: int) -> tuple[int, range]:
    """The range and the lines of a tile, as the kernel finds them."""
    owner = int(tiles.owners[tile])
    _, nbytes, first_tile = tiles.ranges[owner].tolist()
    first = (tile - first_tile) * tile_lines
    return owner, range(first, min(first + tile_lines, -(-nbytes // LINE)))


def line_terms(chunk: npt.NDArray[np.uint8], line: int) -> list[int]:
    """Level 2 terms of a line, each below 2^64."""
    padded = np.zeros(LINE, np.uint8)
    present = chunk[line * LINE : (line + 1) * LINE]
    padded[: present.size] = present
    words = digest_numpy.line_hashes(padded.view(np.uint64).reshape(1, -1))[0].tolist()
    return [word * key(129 + 4 * line + j) % PRIME for j, word in enumerate(words)]


@given(st.lists(st.integers(0, 20 * LINE), max_size=6), st.integers(1, 8))
def test_sums_of_tiles_give_the_digests(sizes: list[int], tile_lines: int) -> None:
    chunks = [random_bytes(size, seed) for seed, size in enumerate(sizes)]
    lengths = column(*sizes)
    tiles = cut_tiles(column(*(chunk.ctypes.data for chunk in chunks)), lengths, tile_lines)
    sums = np.zeros((len(sizes), 2), np.uint64)
    for tile in range(len(tiles.owners)):
        owner, lines = lines_of(tiles, tile, tile_lines)
        for line in lines:
            for term in line_terms(chunks[owner], line):
                sums[owner] += column(term % 2**32, term >> 32)
    expected = [digest_numpy.digest(chunk.data) for chunk in chunks]
    assert digests_from_sums(sums, lengths).tolist() == expected


@given(st.lists(st.integers(0, 2**40), max_size=20), st.integers(1, 2**20))
def test_tiles_of_a_range_follow_each_other_and_hold_each_line_once(sizes: list[int], tile_lines: int) -> None:
    sizes = [size % (50 * tile_lines * LINE) for size in sizes]
    tiles = cut_tiles(column(*range(len(sizes))), column(*sizes), tile_lines)
    ends = [0] * len(sizes)
    for tile in range(len(tiles.owners)):
        owner, lines = lines_of(tiles, tile, tile_lines)
        assert lines.start == ends[owner]
        assert 0 < len(lines) <= tile_lines
        ends[owner] = lines.stop
    assert ends == [-(-size // LINE) for size in sizes]
    assert tiles.ranges[:, :2].tolist() == [list(pair) for pair in enumerate(sizes)]


@given(st.lists(st.tuples(uint64, uint64, uint64), max_size=20))
def test_no_sum_and_no_length_is_too_large(rows: list[tuple[int, int, int]]) -> None:
    table: Any = np.array(rows, np.uint64).reshape(-1, 3)
    sums: npt.NDArray[np.uint64] = np.ascontiguousarray(table[:, :2])
    lengths: Column = np.ascontiguousarray(table[:, 2])
    expected = [(low + (high << 32) + length * key(128)) % PRIME for low, high, length in rows]
    assert digests_from_sums(sums, lengths).tolist() == expected
