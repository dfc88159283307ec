"""Ranges of memory whose content changes by itself: what a tensor shows there now is nothing to pass on, or to fill.

Whoever makes such a range says so here, and whoever takes tensors as they are asks.
"""

import numpy as np
import numpy.typing as npt

_known: dict[int, tuple[int, str]] = {}
"""End of each range, and what is to be said of a tensor within, by its address. Ranges do not overlap."""


def announce(address: int, nbytes: int, reason: str) -> None:
    """Say that the content of a range changes, until `withdraw`.

    Args:
        address: Of the range.
        nbytes: Its size.
        reason: What is said to who asks, and what to do instead; it goes on after the name of a tensor.
    """
    _known[address] = (address + nbytes, reason)


def withdraw(address: int) -> None:
    """Undo `announce`, before the range is another's. Twice is allowed."""
    _known.pop(address, None)


def anything_changes() -> bool:
    """Return whether there is such a range at all."""
    return bool(_known)


def first_changing(addresses: npt.NDArray[np.uint64], nbytes: npt.NDArray[np.int64]) -> tuple[int, str] | None:
    """Return which is the first of many blocks of memory that reaches into such a range, and the reason; or None.

    Args:
        addresses: Of the blocks.
        nbytes: Their sizes; one of size 0 is nowhere.
    """
    ranges = sorted((start, end, reason) for start, (end, reason) in _known.copy().items())  # a copy: other threads
    if not ranges:
        return None
    starts, ends = (np.array([one[side] for one in ranges], np.uint64) for side in (0, 1))
    # As ranges do not overlap, it can only be the last one that begins before the block's end.
    nearest = np.searchsorted(starts, addresses + nbytes.astype(np.uint64), side="left") - 1
    within = (nbytes > 0) & (nearest >= 0) & (ends[nearest] > addresses)
    if not within.any():
        return None
    first = int(np.argmax(within))
    return first, ranges[int(nearest[first])][2]
