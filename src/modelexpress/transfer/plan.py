"""The plan: which bytes travel from where to where, merged, ordered and cut into batches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modelexpress.transfer.edges import Edges
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Addresses, Pieces, chunk_numbers, cut, overlapping
from modelexpress.transport import Run
from modelexpress.wire.tensors import Integers

BATCH_RUNS = 4096
"""A batch has at most so many pieces, so that many tiny tensors are still checked while others travel."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces that travel and are checked together.

    Args:
        pieces: In the order of the manifest.
        end: So many leading chunks of the manifest hold all of them: a source that is still receiving must have these.
        edges: Puts the wanted parts of the pieces in place, which land in a slot of the scratch; None: they land in
            place. The slot is free again when the batch is checked.
    """

    pieces: Pieces
    end: int
    edges: Edges | None = None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return int(self.pieces["nbytes"].sum())

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The copies that bring the pieces: those that follow one another on both sides are one run.

        They are made when they are asked for, while earlier batches travel.
        """
        pieces = self.pieces
        size = pieces["nbytes"].astype(np.uint64)
        joined = (
            (pieces["region"][1:] == pieces["region"][:-1])
            & (pieces["offset"][1:] == (pieces["offset"] + pieces["nbytes"])[:-1])
            & (pieces["address"][1:] == (pieces["address"] + size)[:-1])
        )
        first = np.flatnonzero(np.concatenate(([True], ~joined)))
        heads = pieces[first]
        columns = (heads["region"], heads["offset"], heads["address"], np.add.reduceat(pieces["nbytes"], first))
        return tuple(map(Run, *(column.tolist() for column in columns)))


@dataclass(frozen=True)
class Plan:
    """What will be copied: batches in the order of the manifest, those of edges behind all others.

    `kept_bytes` are those that an earlier source delivered and this one vouches for, too.
    """

    batches: tuple[Batch, ...]
    kept_bytes: int = 0

    @cached_property
    def nbytes(self) -> int:
        """Bytes that will travel."""
        return sum(batch.nbytes for batch in self.batches)


def make_plan(
    manifest: Manifest,
    addresses: Addresses,
    ledger: Ledger,
    batch_bytes: int,
    first_bytes: int | None = None,
) -> Plan:
    """Plan the copy of every tensor in `addresses`.

    Args:
        manifest: The source's manifest.
        addresses: Where each tensor's bytes go in this process.
        ledger: What earlier sources delivered. A chunk is kept where this source's digest is the same.
        batch_bytes: A batch is closed before it exceeds so many bytes, unless one piece does.
        first_bytes: The same for the first batch; each that follows may have twice as many, up to `batch_bytes`.
            Small first ones let checking and passing on begin early. None: all are alike.
    """
    edges = Edges(manifest, addresses, addresses.windows) if addresses.windows else None
    pieces = cut(manifest, addresses)
    keep = ledger.held(manifest, pieces)
    kept_bytes = 0
    if keep.any():
        # Memory that several tensors share is always filled anew: a neighbour's copy may have torn it.
        keep &= ~overlapping(edges.parts(pieces) if edges else pieces)
        kept_bytes = int(pieces["nbytes"][keep].sum())
        pieces = pieces[~keep]
    ledger.forget(manifest, pieces)
    if edges is None:
        return Plan(tuple(_batches(manifest, pieces, batch_bytes, first_bytes)), kept_bytes)
    sticks_out = edges.among(pieces)
    whole = _batches(manifest, pieces[~sticks_out], batch_bytes, first_bytes)
    return Plan((*whole, *_edge_batches(manifest, pieces[sticks_out], batch_bytes, edges)), kept_bytes)


def _batches(manifest: Manifest, pieces: Pieces, batch_bytes: int, first_bytes: int | None) -> Iterator[Batch]:
    numbers = chunk_numbers(manifest, pieces)
    bounds = _batch_bounds(pieces["nbytes"], batch_bytes, first_bytes or batch_bytes)
    return (Batch(pieces[start:end], int(numbers[end - 1]) + 1) for start, end in itertools.pairwise(bounds))


def _edge_batches(manifest: Manifest, pieces: Pieces, batch_bytes: int, edges: Edges) -> Iterator[Batch]:
    """Yield batches of edges, each of which lands in the slot that was used longest ago."""
    numbers, room = chunk_numbers(manifest, pieces), edges.room(pieces)
    most = min(batch_bytes, edges.slot_bytes)
    for number, (start, end) in enumerate(itertools.pairwise(_batch_bounds(room, most, most))):
        yield Batch(edges.placed(pieces[start:end], number), int(numbers[end - 1]) + 1, edges)


def _batch_bounds(sizes: Integers, batch_bytes: int, first_bytes: int) -> list[int]:
    """Return where each batch begins, and the end of the last."""
    ends = np.cumsum(sizes)
    bounds, most = [0], min(first_bytes, batch_bytes)
    while (start := bounds[-1]) < len(sizes):
        before = ends[start - 1] if start else 0
        full = int(np.searchsorted(ends, before + most, side="right"))
        bounds.append(min(max(full, start + 1), start + BATCH_RUNS, len(sizes)))
        most = min(2 * most, batch_bytes)
    return bounds
