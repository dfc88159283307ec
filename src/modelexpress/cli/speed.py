"""How fast one thread of this machine copies and digests memory: the limits that loads are compared with."""

import ctypes
import time

import numpy as np

from modelexpress.memory import HostArena
from modelexpress.transfer.digest import digest_many

_BLOCK = 64 << 20


def filled_arena(nbytes: int) -> HostArena:
    """Return an arena whose pages are all in memory, and hold bytes that are not all the same."""
    arena = HostArena(nbytes)
    pattern = np.random.default_rng(0).integers(0, 256, min(nbytes, 1 << 20), dtype=np.uint8)
    content = np.frombuffer(arena, dtype=np.uint8)[:nbytes]
    for start in range(0, nbytes, len(pattern)):
        content[start : start + len(pattern)] = pattern[: nbytes - start]
    return arena


def fresh_copy_seconds(source: HostArena, nbytes: int) -> float:
    """Return how long one thread copies `nbytes` into shareable pages that nobody has touched.

    Args:
        source: Where the bytes come from; it is read again from its start where it is smaller.
        nbytes: How many.
    """
    target = HostArena(nbytes)
    seconds = copy_seconds(target, source, nbytes)
    target.close()
    return seconds


def copy_seconds(target: HostArena, source: HostArena, nbytes: int) -> float:
    """Return how long one thread copies `nbytes`, block by block as a transfer would."""
    block = min(_BLOCK, source.region.nbytes, nbytes)
    places = max(source.region.nbytes // block, 1)
    started = time.perf_counter()
    for number, start in enumerate(range(0, nbytes, block)):
        origin = source.region.address + number % places * block
        ctypes.memmove(target.region.address + start, origin, min(block, nbytes - start))
    return time.perf_counter() - started


def digest_seconds(source: HostArena) -> float:
    """Return how long one thread digests an arena."""
    starts = np.arange(0, source.region.nbytes, _BLOCK, dtype=np.uint64)
    lengths = np.minimum(np.uint64(_BLOCK), np.uint64(source.region.nbytes) - starts)
    started = time.perf_counter()
    digest_many(starts + np.uint64(source.region.address), lengths)
    return time.perf_counter() - started
