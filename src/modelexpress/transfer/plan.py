"""The plan: which bytes travel from where to where, merged, ordered and cut into batches."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces, cut, overlapping
from modelexpress.transport import Run

BATCH_RUNS = 4096
"""A batch has at most so many pieces, so that many tiny tensors are still checked while others travel."""


@dataclass(frozen=True)
class Batch:
    """Pieces that travel and are checked together, and the runs that bring them."""

    pieces: Pieces
    runs: tuple[Run, ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return int(self.pieces["nbytes"].sum())


@dataclass(frozen=True)
class Plan:
    """What will be copied: batches in the order of the manifest.

    `kept_bytes` are those that an earlier source delivered and this one vouches for, too.
    """

    batches: tuple[Batch, ...]
    kept_bytes: int = 0

    @cached_property
    def nbytes(self) -> int:
        """Bytes that will travel."""
        return sum(batch.nbytes for batch in self.batches)


def make_plan(manifest: Manifest, addresses: Mapping[str, int], ledger: Ledger, batch_bytes: int) -> Plan:
    """Plan the copy of every tensor in `addresses`.

    Args:
        manifest: The source's manifest; it lists every name in `addresses`.
        addresses: Where each tensor's bytes go in this process.
        ledger: What earlier sources delivered. A chunk is kept where this source's digest is the same.
        batch_bytes: A batch is closed before it exceeds so many bytes, unless one piece does.
    """
    pieces = cut(manifest, addresses)
    # Memory that several tensors share is always filled anew: a neighbour's copy may have torn it.
    keep = ledger.held(manifest, pieces) & ~overlapping(pieces)
    kept_bytes = int(pieces["nbytes"][keep].sum())
    pieces = pieces[~keep]
    ledger.forget(manifest, pieces)
    bounds = _batch_bounds(pieces["nbytes"], batch_bytes)
    batches = (_batch(pieces[start:end]) for start, end in itertools.pairwise(bounds))
    return Plan(tuple(batches), kept_bytes)


def _batch_bounds(sizes: npt.NDArray[np.int64], batch_bytes: int) -> list[int]:
    """Return where each batch begins, and the end of the last."""
    bounds, total = [0], 0
    for position, size in enumerate(sizes.tolist()):
        full = total + size > batch_bytes or position - bounds[-1] >= BATCH_RUNS
        if full and position > bounds[-1]:
            bounds.append(position)
            total = 0
        total += size
    return [*bounds, len(sizes)] if len(sizes) else [0]


def _batch(pieces: Pieces) -> Batch:
    """Merge neighbours: pieces that follow one another on both sides become one run."""
    size = pieces["nbytes"].astype(np.uint64)
    joined = (
        (pieces["region"][1:] == pieces["region"][:-1])
        & (pieces["offset"][1:] == (pieces["offset"] + pieces["nbytes"])[:-1])
        & (pieces["address"][1:] == (pieces["address"] + size)[:-1])
    )
    first = np.flatnonzero(np.concatenate(([True], ~joined)))
    lengths = np.add.reduceat(pieces["nbytes"], first)
    heads = pieces[first]
    columns = (heads["region"], heads["offset"], heads["address"], lengths)
    runs = (Run(*values) for values in zip(*(column.tolist() for column in columns), strict=True))
    return Batch(pieces, tuple(runs))
