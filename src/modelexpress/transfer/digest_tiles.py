"""Digests of many ranges at once, for a processor of many cores: the work in equal tiles, and what becomes of sums.

Everything here is numpy on the host. `digest_kernel.py` does the tiles.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelexpress.transfer.digest import Column
from modelexpress.transfer.digest_numpy import LENGTH_KEY, LINE_BYTES, PRIME, keys

_PRIME = np.uint64(PRIME)
_BITS = np.uint64(61)  # 2^61 is 1 modulo PRIME
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFF_FFFF)
_QUARTER = np.uint64(29)  # 2^29 * 2^32 is 1 modulo PRIME


@dataclass(frozen=True)
class Tiles:
    """Ranges of memory, cut into tiles of whole lines.

    Args:
        ranges: Address, bytes, and number of the first tile of each range; shape (ranges, 3).
        owners: The range of each tile; shape (tiles,).
    """

    ranges: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int32]


def cut_tiles(addresses: Column, lengths: Column, tile_lines: int) -> Tiles:
    """Cut ranges into tiles of `tile_lines` lines, the last of each range shorter; a range of 0 bytes has none."""
    tile_bytes = np.uint64(tile_lines * LINE_BYTES)
    counts = (lengths // tile_bytes + (lengths % tile_bytes > 0)).astype(np.int64)
    ranges = np.empty((len(lengths), 3), np.int64)
    ranges[:, 0] = addresses.view(np.int64)
    ranges[:, 1] = lengths.view(np.int64)
    ranges[:, 2] = np.cumsum(counts) - counts
    return Tiles(ranges, np.repeat(np.arange(len(lengths), dtype=np.int32), counts))


def digests_from_sums(sums: npt.NDArray[np.uint64], lengths: Column) -> Column:
    """Digests of ranges from the sums of their terms of level 2, `docs/digest.md`.

    Args:
        sums: Sums of the low and of the high 32 bits of the terms of each range; shape (ranges, 2).
        lengths: Bytes of each range.
    """
    # Three summands below 2^62 fit 64 bits.
    total = _folded(sums[:, 0]) + _times_half(sums[:, 1]) + _product(lengths, _KEY, _HIGH_KEY)
    digests: Column = total % _PRIME
    return digests


def _product(numbers: Column, key: Column, high_key: Column) -> Column:
    """`numbers * key`, congruent modulo PRIME and below 2^61 + 8; `high_key` is `key * 2^32`, congruent."""
    return _folded(_product32(numbers & _LOW, key) + _product32(numbers >> _HALF, high_key))


def _product32(numbers: Column, key: Column) -> Column:
    """`numbers * key` for numbers below 2^32 and a key below 2^61 + 8; congruent and below 2^62 + 2^36."""
    return _folded(numbers * (key & _LOW)) + _times_half(numbers * (key >> _HALF))


def _times_half(numbers: Column) -> Column:
    """`numbers * 2^32`, congruent modulo PRIME and below 2^61 + 2^35: the 61 bits of a number go round."""
    return ((numbers << _HALF) & _PRIME) + (numbers >> _QUARTER)


def _folded(numbers: Column) -> Column:
    """`numbers`, congruent modulo PRIME and below 2^61 + 8."""
    return (numbers & _PRIME) + (numbers >> _BITS)


_KEY = _folded(keys(LENGTH_KEY, 1))
_HIGH_KEY = _folded(_times_half(_KEY))
