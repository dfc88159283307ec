"""The tensors of a manifest as columns: tens of thousands of them are a few arrays, not as many objects."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat

import numpy as np
import numpy.typing as npt

from modelexpress.wire.records import TensorSpec

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """What many tensors have in common: `shape` and `strides` count elements, `nbytes` is the size of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, eq=False)
class Tensors:
    """Tensors by position, column by column. `TensorSpec` says what each column means.

    Args:
        names: One a tensor, like all that follow but `layouts`.
        layouts: Those that occur.
        layout_index: Which of them each tensor has.
        regions: Index of the region.
        offsets: Bytes from the beginning of the region.
        persistent: False for buffers that a checkpoint leaves out.
    """

    names: tuple[str, ...]
    layouts: tuple[Layout, ...]
    layout_index: Integers
    regions: Integers
    offsets: Integers
    persistent: Flags

    @classmethod
    def of(cls, specs: "Iterable[TensorSpec] | Tensors") -> "Tensors":
        """Return the columns of tensors that are given one by one."""
        if isinstance(specs, Tensors):
            return specs
        listed = tuple(specs)
        numbers: dict[Layout, int] = {}
        for spec in listed:
            numbers.setdefault(_layout(spec), len(numbers))
        return cls(
            tuple(spec.name for spec in listed),
            tuple(numbers),
            np.array([numbers[_layout(spec)] for spec in listed], np.int64),
            np.array([spec.region for spec in listed], np.int64),
            np.array([spec.offset for spec in listed], np.int64),
            np.array([spec.persistent for spec in listed], np.bool_),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> TensorSpec:
        """Return one tensor; for messages and whatever is not done for all of them."""
        layout = self.layout(position)
        return TensorSpec(
            self.names[position],
            layout.dtype,
            layout.shape,
            layout.strides,
            int(self.regions[position]),
            int(self.offsets[position]),
            layout.nbytes,
            bool(self.persistent[position]),
        )

    def __iter__(self) -> Iterator[TensorSpec]:
        return (self[position] for position in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensors):
            return NotImplemented
        places = (self.regions, other.regions), (self.offsets, other.offsets), (self.persistent, other.persistent)
        return self.alike(other) and all(np.array_equal(own, theirs) for own, theirs in places)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each tensor by name."""
        return dict(zip(self.names, range(len(self.names)), strict=True))

    @cached_property
    def nbytes(self) -> Integers:
        """Bytes of each tensor."""
        return np.array([layout.nbytes for layout in self.layouts], np.int64)[self.layout_index]

    def layout(self, position: int) -> Layout:
        """Return the layout of one tensor."""
        return self.layouts[int(self.layout_index[position])]

    def positions(self, names: Sequence[str]) -> Integers:
        """Return the position of each name; -1 where there is none."""
        if names == self.names:
            return np.arange(len(names))
        return np.fromiter(map(self.index.get, names, repeat(-1)), np.int64, len(names))

    def alike(self, other: "Tensors") -> bool:
        """Return whether these are the same names with the same layouts in the same order, wherever they lie."""
        return self.names == other.names and np.array_equal(*self._kinds(other))

    def counterparts(self, other: "Tensors") -> tuple[Integers, Integers]:
        """Return the positions of the tensors that both list under the same name with the same layout: here, there."""
        own, theirs = self._kinds(other)
        here = self.positions(other.names)
        there = np.flatnonzero(here >= 0)
        there = there[own[here[there]] == theirs[there]]
        return here[there], there

    def moved(self, regions: Integers, offsets: Integers) -> "Tensors":
        """Return the same tensors in another place."""
        moved = replace(self, regions=regions, offsets=offsets)
        vars(moved).update(index=self.index, nbytes=self.nbytes)
        return moved

    def _kinds(self, other: "Tensors") -> tuple[Integers, Integers]:
        """Return a number for each tensor here and there, equal for equal layouts."""
        numbers: dict[Layout, int] = {}
        own, theirs = (
            np.array([numbers.setdefault(layout, len(numbers)) for layout in tensors.layouts], np.int64)
            for tensors in (self, other)
        )
        return own[self.layout_index], theirs[other.layout_index]


def _layout(spec: TensorSpec) -> Layout:
    return Layout(spec.dtype, spec.shape, spec.strides, spec.nbytes)
