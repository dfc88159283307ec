"""The chunk digest in numpy: the readable definition, and what runs where no compiler was there.

`docs/digest.md` states the formula and its collision bound. The two levels follow these sources:
NH: Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC: fast and secure message authentication", CRYPTO 1999;
multilinear hashing: Carter and Wegman, "Universal classes of hash functions", 1979.
"""

import ctypes
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Buffer

Words: TypeAlias = npt.NDArray[np.uint64]

ALGORITHM: Final = "nh128-p61/1"
SEED: Final = 0x243F6A8885A308D3  # the first 64 bits of the fraction of pi: nobody chose them
STEP: Final = 0x9E3779B97F4A7C15
PRIME: Final = 2**61 - 1
LINE_BYTES: Final = 1024
LINE_WORDS: Final = LINE_BYTES // 8
LENGTH_KEY: Final = LINE_WORDS  # keys before it belong to level 1, keys after it to line hashes
BLOCK_BYTES: Final = 64 * LINE_BYTES  # temporary arrays of a block stay in cache, and below malloc's mmap

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFF_FFFF)


def keys(first: int, count: int) -> Words:
    """Outputs `first` to `first + count - 1` of splitmix64 started at SEED.

    Any output can be computed without those before it. Source: Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014.
    """
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(STEP) + np.uint64(SEED)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def line_hashes(lines: Words) -> Words:
    """Level 1: NH of every line.

    Args:
        lines: Words of whole lines, shape (lines, 128).

    Returns:
        The 128-bit hashes as 32-bit words, lowest first, shape (lines, 4).
    """
    factors = lines + keys(0, LINE_WORDS)  # wraps at 2^64, as NH wants
    a, b = factors[:, 0::2], factors[:, 1::2]
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    low, cross, other, high = a_low * b_low, a_low * b_high, a_high * b_low, a_high * b_high
    columns = (  # sums of 32-bit halves by their weight 2^(32 j); 64 pairs cannot overflow them
        _sum_rows(low & _LOW),
        _sum_rows(low >> _HALF) + _sum_rows(cross & _LOW) + _sum_rows(other & _LOW),
        _sum_rows(cross >> _HALF) + _sum_rows(other >> _HALF) + _sum_rows(high & _LOW),
        _sum_rows(high >> _HALF),
    )
    words = np.empty((len(lines), 4), dtype=np.uint64)
    carry = np.zeros(len(lines), dtype=np.uint64)
    for j, column in enumerate(columns):
        carry = carry + column
        words[:, j] = carry & _LOW
        carry = carry >> _HALF
    return words


def multilinear(words: Words, first_line: int) -> int:
    """Level 2 of consecutive lines, not yet reduced modulo PRIME.

    Args:
        words: What `line_hashes` returned.
        first_line: Index of the first of these lines in its chunk.
    """
    line_keys = keys(LENGTH_KEY + 1 + 4 * first_line, words.size) % np.uint64(PRIME)
    flat = words.reshape(-1)
    return _exact_sum(flat * (line_keys & _LOW)) + (_exact_sum(flat * (line_keys >> _HALF)) << 32)


def digest(data: "Buffer", /) -> int:
    """Digest of a chunk, as `modelexpress.transfer.digest.digest`."""
    return _digest(np.frombuffer(memoryview(data), dtype=np.uint8))


def digest_many(addresses: Words, lengths: Words, digests: Words, /) -> None:
    """Writes the digest of every range of this process's memory into `digests`."""
    for i, (address, length) in enumerate(zip(addresses.tolist(), lengths.tolist(), strict=True)):
        digests[i] = _digest(np.asarray(_Range(address, length)))


def copy_digest_many(destinations: Words, sources: Words, lengths: Words, digests: Words, /) -> None:
    """Copies every range, then digests all destinations."""
    ranges = zip(destinations.tolist(), sources.tolist(), lengths.tolist(), strict=True)
    for destination, source, length in ranges:
        ctypes.memmove(destination, source, length)
    digest_many(destinations, lengths, digests)


def _digest(chunk: npt.NDArray[np.uint8]) -> int:
    total = chunk.size * int(keys(LENGTH_KEY, 1)[0])
    for first in range(0, chunk.size, BLOCK_BYTES):
        lines = _padded_lines(chunk[first : first + BLOCK_BYTES])
        total += multilinear(line_hashes(lines), first // LINE_BYTES)
    return total % PRIME


def _sum_rows(values: Words) -> Words:
    sums: Words = values.sum(axis=1, dtype=np.uint64)
    return sums


def _exact_sum(values: Words) -> int:
    """Sum of up to 2^32 values without overflow: low and high halves apart, as a GPU adds them."""
    return int((values & _LOW).sum()) + (int((values >> _HALF).sum()) << 32)


def _padded_lines(block: npt.NDArray[np.uint8]) -> Words:
    """Words of a block, shape (lines, 128); zero bytes fill the last line."""
    missing = -block.size % LINE_BYTES
    if missing:
        block = np.concatenate([block, np.zeros(missing, dtype=np.uint8)])
    return block.view(np.dtype("<u8")).astype(np.uint64, copy=False).reshape(-1, LINE_WORDS)


class _Range:
    """A range of memory that numpy reads in place, through its array interface protocol, version 3."""

    def __init__(self, address: int, length: int) -> None:
        read_only = True
        self.__array_interface__ = {
            "data": (address, read_only),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }
