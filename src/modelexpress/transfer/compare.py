"""Comparison of what a source holds with what a target wants, both ways, before one byte moves."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from modelexpress.errors import ManifestMismatch
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.rows import Rows
from modelexpress.wire.tensors import Flags, Integers, Layout

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Wanted:
    """The tensors that a target has room for, column by column.

    Args:
        names: As in the source's manifest.
        layouts: Those that occur; the order of the elements does not matter here.
        layout_index: Which of them each tensor has.
        memories: Tensors of one target with the same number are one and the same memory (tied weights). The numbers
            count from 0.
        rows: For tensors that have room for some rows of the source's only: which those are, by position.
    """

    names: tuple[str, ...]
    layouts: tuple[Layout, ...]
    layout_index: Integers
    memories: Integers
    rows: Mapping[int, Rows] = field(default_factory=dict)

    @cached_property
    def memory_count(self) -> int:
        """One more than the largest number of a memory."""
        return int(self.memories.max(initial=-1)) + 1


def compare(manifest: Manifest, wanted: Wanted) -> None:
    """Check that source and target agree on every tensor.

    A name that the source lacks is satisfied by another name of the same memory. Tensors that the target ties must
    be equal at the source.

    Raises:
        ManifestMismatch: With the names that are missing, unexpected or different.
    """
    held = manifest.tensors.positions(wanted.names)
    found = held >= 0
    missing = _missing(wanted, found)
    unexpected = _unexpected(manifest, held[found])
    different = _different(manifest, wanted, held) + _untied(manifest, wanted, held)
    if missing or unexpected or different:
        raise ManifestMismatch(
            _summary(missing, unexpected, different),
            missing=missing,
            unexpected=unexpected,
            different=different,
        )


def _missing(wanted: Wanted, found: Flags) -> list[str]:
    """Return the names of tensors whose memory the source fills under no name."""
    filled = np.zeros(wanted.memory_count, np.bool_)
    filled[wanted.memories[found]] = True
    return [wanted.names[position] for position in np.flatnonzero(~filled[wanted.memories]).tolist()]


def _unexpected(manifest: Manifest, held: Integers) -> list[str]:
    """Return the names that the source holds beyond those at the positions `held`."""
    expected = np.zeros(len(manifest), np.bool_)
    expected[held] = True
    return [manifest.names[position] for position in np.flatnonzero(~expected).tolist()]


def _different(manifest: Manifest, wanted: Wanted, held: Integers) -> list[str]:
    """Return a sentence for each tensor of which source and target have different ideas."""
    numbers: dict[object, int] = {}
    own = _kinds(wanted.layouts, numbers)[wanted.layout_index]
    theirs = _kinds(manifest.tensors.layouts, numbers)[manifest.tensors.layout_index]
    whole = held >= 0
    whole[list(wanted.rows)] = False
    found = np.flatnonzero(whole)
    return [
        f"'{wanted.names[position]}' is {_describe(manifest.tensors.layout(held[position]))} at the source, "
        f"{_describe(wanted.layouts[int(wanted.layout_index[position])])} at the target"
        for position in found[own[found] != theirs[held[found]]].tolist()
    ] + _different_rows(manifest, wanted, held)


def _different_rows(manifest: Manifest, wanted: Wanted, held: Integers) -> list[str]:
    """Return a sentence for each tensor of which the source has not the rows that are wanted."""
    reasons = []
    for position, rows in wanted.rows.items():
        if held[position] < 0:
            continue
        name, there = wanted.names[position], manifest.tensors.layout(held[position])
        here = wanted.layouts[int(wanted.layout_index[position])]
        if misfit := rows.misfit(there):
            reasons.append(f"'{name}' is {_describe(there)} at the source: {misfit}")
        elif _kind(rows.of(there)) != _kind(here):
            what = f"rows {rows} of '{name}' are {_describe(rows.of(there))} at the source"
            reasons.append(f"{what}, {_describe(here)} at the target")
    return reasons


def _kinds(layouts: Iterable[Layout], numbers: dict[object, int]) -> Integers:
    """Return a number for each layout, equal for those that differ in nothing but the order of their elements."""
    return np.array([numbers.setdefault(_kind(layout), len(numbers)) for layout in layouts], np.int64)


def _kind(layout: Layout) -> tuple[str, tuple[int, ...], int]:
    return layout.dtype, layout.shape, layout.nbytes


def _describe(layout: Layout) -> str:
    return f"{layout.dtype}{list(layout.shape)} of {layout.nbytes} bytes"


def _untied(manifest: Manifest, wanted: Wanted, held: Integers) -> list[str]:
    """Return a sentence for each pair that is one memory at the target but has two values at the source."""
    found = held >= 0
    names = np.bincount(wanted.memories[found], minlength=wanted.memory_count)
    groups: dict[int, list[int]] = defaultdict(list)
    for position in np.flatnonzero(found & (names[wanted.memories] > 1)).tolist():
        groups[int(wanted.memories[position])].append(position)
    reasons = []
    for first, *others in groups.values():
        for other in others:
            left, right = (manifest.tensor_digests(int(held[position])) for position in (first, other))
            if not np.array_equal(left, right):
                pair = f"'{wanted.names[first]}' and '{wanted.names[other]}'"
                reasons.append(f"{pair} are tied at the target, but differ at the source")
    return reasons


def _summary(missing: Sequence[str], unexpected: Sequence[str], different: Sequence[str]) -> str:
    parts = []
    if missing:
        parts.append(f"the source lacks {len(missing)} tensors ({_some(missing)})")
    if unexpected:
        parts.append(f"the target lacks {len(unexpected)} tensors ({_some(unexpected)})")
    if different:
        parts.append(f"{len(different)} tensors differ ({_some(different)})")
    return (
        "source and target do not hold the same tensors: "
        + "; ".join(parts)
        + ". Nothing was changed. Give models that differ different identities"
    )


def _some(items: Sequence[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
