"""The rows that a target has of some tensors: which they are, and where they are in what a source holds."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modelexpress.errors import ConfigurationError, UnsupportedModel
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import PIECE, overlapping
from modelexpress.transfer.rows import Rows
from modelexpress.weights.catalog import Catalogue, addresses_of
from modelexpress.wire.tensors import Flags, Integers, Layout

RowRanges = Mapping[str, tuple[int, int]]
"""For names of tensors the rows of the whole that a target has: (start, stop), along the first dimension."""


def choose_rows(listed: Catalogue, ranges: RowRanges) -> dict[int, Rows]:
    """Return which rows a tensor of the model has, by position; tied tensors have them under each name.

    Raises:
        ConfigurationError: A name is none of the model's, a range is none, or the tensor has another number of rows.
        UnsupportedModel: A tensor that has some rows shares a part of its memory with another one.
    """
    if not ranges:
        return {}
    positions = {name: position for position, name in enumerate(listed.names)}
    if missing := sorted(ranges.keys() - positions.keys()):
        raise ConfigurationError(
            f"rows are asked for of '{missing[0]}', which the model has not, {len(missing)} in all"
        )
    by_memory: dict[int, Rows] = {}
    for name, (start, stop) in ranges.items():
        rows = Rows(operator.index(start), operator.index(stop))
        _check(name, rows, listed.kind(positions[name]).layout)
        memory = int(listed.memories[positions[name]])
        if by_memory.setdefault(memory, rows) != rows:
            raise ConfigurationError(f"'{name}' shall be rows {rows}, and a tensor tied to it rows {by_memory[memory]}")
    some = np.isin(listed.memories, list(by_memory))
    _check_apart(listed, some)
    return {position: by_memory[int(listed.memories[position])] for position in np.flatnonzero(some).tolist()}


@dataclass(frozen=True, eq=False)
class Parts:
    """What is wanted of tensors of a manifest, one after the other.

    Args:
        layouts: Those that occur, of the rows alone where some are wanted.
        layout_index: Which of them each tensor has.
        first: The first byte of each that is wanted.
        end: The one behind the last.
    """

    layouts: tuple[Layout, ...]
    layout_index: Integers
    first: Integers
    end: Integers


def parts_of(manifest: Manifest, chosen: Integers, held: Integers, rows: Mapping[int, Rows]) -> Parts:
    """Return what is wanted of the tensors of a manifest at the positions `held`, which are those of `chosen` here."""
    layouts, index = list(manifest.tensors.layouts), manifest.tensors.layout_index[held]
    first, end = np.zeros(len(held), np.int64), manifest.tensors.nbytes[held]
    for place in np.flatnonzero(np.isin(chosen, list(rows))).tolist():
        whole, part = layouts[index[place]], rows[int(chosen[place])]
        index[place] = len(layouts)
        layouts.append(part.of(whole))
        first[place], end[place] = part.window(whole)
    return Parts(tuple(layouts), index, first, end)


def travelling_bytes(manifest: Manifest, listed: Catalogue, rows: Mapping[int, Rows]) -> Integers:
    """Return how many bytes of each tensor of a manifest travel: of rows the chunks that hold them, whole."""
    held = manifest.tensors.positions(listed.names)
    chosen = np.array([position for position in rows if held[position] >= 0], np.int64)
    parts, chunk = parts_of(manifest, chosen, held[chosen], rows), manifest.chunk_bytes
    nbytes = manifest.tensors.nbytes.copy()
    nbytes[held[chosen]] = (
        np.minimum(-(-parts.end // chunk) * chunk, nbytes[held[chosen]]) - parts.first // chunk * chunk
    )
    return nbytes


def _check(name: str, rows: Rows, layout: Layout) -> None:
    if not 0 <= rows.start < rows.stop:
        raise ConfigurationError(f"rows {rows} of '{name}' are none: give (start, stop) with 0 <= start < stop")
    if not layout.shape or layout.shape[0] != rows.stop - rows.start:
        raise ConfigurationError(
            f"'{name}' shall be rows {rows} of the whole tensor, {rows.stop - rows.start} in all, "
            f"but has the shape {list(layout.shape)} in the model"
        )


def _check_apart(listed: Catalogue, some: Flags) -> None:
    """Check that no other tensor reaches into the memory of one that has some rows.

    What overlaps is checked again when everything is there, which chunks that stick out cannot be.
    """
    dense = np.array([kind.is_dense and not kind.is_meta for kind in listed.kinds], np.bool_)[listed.kind_index]
    _, first = np.unique(listed.memories, return_index=True)
    there = np.sort(first[(dense & (listed.nbytes > 0))[first]])
    places = np.zeros(len(there), PIECE)
    places["address"] = addresses_of([listed.tensors[position] for position in there.tolist()])
    places["nbytes"] = listed.nbytes[there]
    torn = there[overlapping(places) & some[there]]
    if len(torn):
        raise UnsupportedModel(
            f"'{listed.names[int(torn[0])]}', of which some rows shall be loaded, shares a part of its memory with "
            "another tensor: give it memory of its own"
        )
