"""The chunk digest as a Triton kernel: one program digests one tile of lines of one range.

`docs/digest.md` defines the numbers. A line belongs to a few neighbouring threads, its lanes. Each multiplies its
share of the 64 pairs and adds them up in registers, so that one sum a thread, not one a pair, crosses threads.
Then lane j of a line has word j of its hash, and one product of level 2 to do.
"""

# mypy: disallow-untyped-decorators=False

from dataclasses import dataclass

import triton
import triton.language as tl

from modelexpress.transfer import digest_numpy

_LINE_BYTES = tl.constexpr(digest_numpy.LINE_BYTES)
_LINE_WORDS = tl.constexpr(digest_numpy.LINE_WORDS)
_FIRST_LINE_KEY = tl.constexpr(digest_numpy.LENGTH_KEY + 1)
_HASH_WORDS = tl.constexpr(4)
_PRIME = tl.constexpr(digest_numpy.PRIME)
_SEED = tl.constexpr(digest_numpy.SEED)
_STEP = tl.constexpr(digest_numpy.STEP)
_LOW = tl.constexpr(0xFFFF_FFFF)


@dataclass(frozen=True)
class Shape:
    """How the kernel divides its work. Digests do not depend on it, speed does (`benchmarks/digest_gpu.py`).

    Args:
        tile: Lines of a program: many, to outweigh its start; few, so that small launches occupy every processor.
        lines: Lines that a program holds at once. `tile` is a multiple.
        lanes: Threads of a line, a power of two from 4 to 32. Together they read 16 bytes each at a time.
        warps: Groups of 32 threads of a program.
        programs: The most programs of a launch, which then take several tiles each, in turn: they leave memory
            bandwidth to the copies that run beside them. None: one for each tile, as fast as it goes.
    """

    tile: int
    lines: int
    lanes: int
    warps: int
    programs: int | None = None


# Measured on an H200: without a limit of programs 4.59 TB/s, 0.99 of reading alone (eight lanes a line took more
# registers, and reached 3.76), but then a copy that arrives meanwhile takes 1.06 times as long. Beside 528 programs,
# four for each multiprocessor, it takes no longer than without digests; with 132 these are the slower ones.
DEFAULT_SHAPE = Shape(tile=256, lines=8, lanes=16, warps=4, programs=528)


def launch(shape: Shape, tiles: int, ranges: object, owners: object, keys: object, sums: object) -> None:
    """Launch `add_tiles`, or `add_tiles_in_turn` where the shape limits the programs, on torch's current stream.

    The arguments are tensors that the device reaches, page-locked host memory included, with the meaning that they
    have in `add_tiles`; there are `tiles` tiles, one at least.
    """
    constants = {"tile_lines": shape.tile, "lines": shape.lines, "lanes": shape.lanes, "num_warps": shape.warps}
    if shape.programs is None:
        add_tiles[(tiles,)](ranges, owners, keys, sums, **constants)
    else:
        add_tiles_in_turn[(min(tiles, shape.programs),)](ranges, owners, keys, sums, tiles, **constants)


@triton.jit
def add_tiles(
    ranges: tl.tensor,
    owners: tl.tensor,
    keys: tl.tensor,
    sums: tl.tensor,
    tile_lines: tl.constexpr,
    lines: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """Adds the terms of level 2 of tile `program_id(0)` to the sums of its range.

    Args:
        ranges: int64, shape (ranges, 3): address, bytes, number of the first tile.
        owners: int32, shape (tiles,): the range of each tile.
        keys: int64, shape (128,): the keys of level 1.
        sums: int64, shape (ranges, 2): sums of the low and of the high 32 bits of the terms, modulo 2^64.
        tile_lines: As `Shape.tile`.
        lines: As `Shape.lines`.
        lanes: As `Shape.lanes`.
    """
    _add_tile(tl.program_id(0), ranges, owners, keys, sums, tile_lines, lines, lanes)


@triton.jit(do_not_specialize=["tiles"])  # else some numbers of tiles would compile a kernel of their own
def add_tiles_in_turn(
    ranges: tl.tensor,
    owners: tl.tensor,
    keys: tl.tensor,
    sums: tl.tensor,
    tiles: tl.tensor,
    tile_lines: tl.constexpr,
    lines: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """The same with fewer programs than tiles: each takes every so many-th of the `tiles` tiles."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        _add_tile(tile, ranges, owners, keys, sums, tile_lines, lines, lanes)


@triton.jit(do_not_specialize=["count"])
def hand_over(sums: tl.tensor, found: tl.tensor, count: tl.tensor, block: tl.constexpr) -> None:
    """Moves `count` sums to page-locked host memory and leaves zeros: no copy engine, which may be busy, takes part.

    Args:
        sums: int64, of the device.
        found: int64, of the host.
        count: Of both.
        block: Of a program.
    """
    index = tl.program_id(0) * block + tl.arange(0, block)
    wanted = index < count
    tl.store(found + index, tl.load(sums + index, mask=wanted), mask=wanted)
    tl.store(sums + index, tl.zeros([block], tl.int64), mask=wanted)


@triton.jit
def _add_tile(
    tile: tl.tensor,
    ranges: tl.tensor,
    owners: tl.tensor,
    keys: tl.tensor,
    sums: tl.tensor,
    tile_lines: tl.constexpr,
    lines: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    owner = tl.load(owners + tile).to(tl.int64)
    address = tl.load(ranges + 3 * owner)
    nbytes = tl.load(ranges + 3 * owner + 1)
    first = (tile - tl.load(ranges + 3 * owner + 2)) * tile_lines
    end = tl.minimum(first + tile_lines, tl.cdiv(nbytes, _LINE_BYTES))
    whole = tl.minimum(first + tile_lines, nbytes // _LINE_BYTES) - first
    fast_end = first + tl.where(address % 16 == 0, whole // lines * lines, 0)

    low = tl.zeros([lines, lanes], tl.uint64)
    high = tl.zeros([lines, lanes], tl.uint64)
    for line in range(first, fast_end, lines):
        term = _terms_of_whole_lines(address, line, keys, lines, lanes)
        low += term & _LOW
        high += term >> 32
    for line in range(fast_end, end, lines):
        term = _terms_of_any_lines(address, nbytes, line, keys, lines, lanes)
        term = tl.where((line + tl.arange(0, lines) < end)[:, None], term, 0)
        low += term & _LOW
        high += term >> 32
    # Sums of integers do not depend on the order in which programs come here.
    tl.atomic_add(sums + 2 * owner, tl.sum(low).to(tl.int64, bitcast=True), sem="relaxed")
    tl.atomic_add(sums + 2 * owner + 1, tl.sum(high).to(tl.int64, bitcast=True), sem="relaxed")


@triton.jit
def _terms_of_whole_lines(
    address: tl.tensor, line: tl.tensor, keys: tl.tensor, lines: tl.constexpr, lanes: tl.constexpr
) -> tl.tensor:
    """Terms of `lines` whole lines, from `line` on, of a range that is aligned to 16 bytes; shape (lines, lanes)."""
    memory = tl.cast(address, tl.pointer_type(tl.uint64)) + _word_indices(line, lines, lanes)
    keys += _word_indices(0, 1, lanes)
    c0, c1, c2, c3 = _no_products(lines, lanes)
    for start in tl.static_range(0, _LINE_WORDS, 2 * lanes):  # unrolled, so that all loads precede the products
        word = tl.load(tl.multiple_of(memory + start, (16, 16)))
        c0, c1, c2, c3 = _add_products(word, tl.load(keys + start), c0, c1, c2, c3)
    return _multilinear(c0, c1, c2, c3, line, lines, lanes)


@triton.jit
def _terms_of_any_lines(
    address: tl.tensor, nbytes: tl.tensor, line: tl.tensor, keys: tl.tensor, lines: tl.constexpr, lanes: tl.constexpr
) -> tl.tensor:
    """The same of a range with any alignment; its end is filled up with zero bytes.

    A word lies in two aligned words of memory. Each is read only if it holds a byte of the range, so that no
    access leaves the pages of the range.
    """
    skipped = address & 7
    shift = (skipped * 8).to(tl.uint64)
    memory = tl.cast(address - skipped, tl.pointer_type(tl.uint64)) + _word_indices(line, lines, lanes)
    rest = nbytes - 8 * _word_indices(line, lines, lanes)
    keys += _word_indices(0, 1, lanes)
    c0, c1, c2, c3 = _no_products(lines, lanes)
    for start in tl.range(0, _LINE_WORDS, 2 * lanes, loop_unroll_factor=4):
        left = rest - 8 * start
        here = tl.load(memory + start, mask=left > 0, other=0)
        beyond = tl.load(memory + start + 1, mask=left > 8 - skipped, other=0)
        word = (here >> shift) | (beyond << 1 << (63 - shift))  # in two steps: a shift by 64 is undefined
        unwanted = (8 - tl.minimum(tl.maximum(left, 1), 8)).to(tl.uint64) * 8
        word = word << unwanted >> unwanted
        c0, c1, c2, c3 = _add_products(word, tl.load(keys + start), c0, c1, c2, c3)
    return _multilinear(c0, c1, c2, c3, line, lines, lanes)


@triton.jit
def _word_indices(line: tl.tensor, lines: tl.constexpr, lanes: tl.constexpr) -> tl.tensor:
    """Indices of the first 2 * lanes words of each line, shape (lines, 2 * lanes)."""
    return (line + tl.arange(0, lines))[:, None] * _LINE_WORDS + tl.arange(0, 2 * lanes)[None, :]


@triton.jit
def _no_products(lines: tl.constexpr, lanes: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    nothing = tl.zeros([lines, lanes], tl.uint64)
    return nothing, nothing, nothing, nothing


@triton.jit
def _add_products(
    word: tl.tensor, key: tl.tensor, c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Adds the 128-bit products of neighbouring factors to four columns of 32 bits: no carries between pairs."""
    factors = word + key.to(tl.uint64, bitcast=True)
    a, b = tl.split(tl.reshape(factors, [factors.shape[0], factors.shape[1] // 2, 2]))
    low = a * b
    high = tl.umulhi(a, b)
    return c0 + (low & _LOW), c1 + (low >> 32), c2 + (high & _LOW), c3 + (high >> 32)


@triton.jit
def _multilinear(
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
    line: tl.tensor,
    lines: tl.constexpr,
    lanes: tl.constexpr,
) -> tl.tensor:
    """Level 2: terms below 2^63, congruent to word * key, one for each word of a line's hash and else 0."""
    c0 = tl.sum(c0, axis=1, keep_dims=True)
    c1 = tl.sum(c1, axis=1, keep_dims=True) + (c0 >> 32)
    c2 = tl.sum(c2, axis=1, keep_dims=True) + (c1 >> 32)
    c3 = tl.sum(c3, axis=1, keep_dims=True) + (c2 >> 32)
    j = tl.arange(0, lanes)[None, :]
    word = tl.where(j == 0, c0, tl.where(j == 1, c1, tl.where(j == 2, c2, c3))) & _LOW
    word = tl.where(j < _HASH_WORDS, word, 0)
    index = (line + tl.arange(0, lines))[:, None] * _HASH_WORDS + (_FIRST_LINE_KEY + j)
    key = _key(index.to(tl.uint64))
    key = (key & _PRIME) + (key >> 61)
    low = word * key
    return (low & _PRIME) + ((tl.umulhi(word, key) << 3) | (low >> 61))


@triton.jit
def _key(index: tl.tensor) -> tl.tensor:
    """Output `index` of splitmix64."""
    z = (index + 1) * _STEP + _SEED
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
