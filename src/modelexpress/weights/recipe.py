"""How a tensor of the model is made of a checkpoint's, where it is not stored as it is: experts one by one, mostly."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modelexpress.errors import CheckpointError
from modelexpress.transfer.manifest import contiguous_strides
from modelexpress.transfer.rows import Rows
from modelexpress.weights.small_files import listed
from modelexpress.weights.stored_tensor import StoredTensor
from modelexpress.wire.tensors import Layout


@dataclass(frozen=True)
class Recipe:
    """What one tensor of the model is made of.

    Args:
        parts: Names in the checkpoint. Of a tensor that is stored as it is, its one name. Of a stack, for each part of
            a row the names of all rows: row r is the r-th tensor of each part, one behind the other.
        stacked: Whether it is a stack.
        obstacle: What else must be done, which cannot be read row by row; "" where that is all.
    """

    parts: tuple[tuple[str, ...], ...]
    stacked: bool = False
    obstacle: str = ""


class Piece(NamedTuple):
    """Bytes of a file, and which elements of the model's tensor they are."""

    stored: StoredTensor
    place: tuple[int | slice, ...]


@dataclass(frozen=True)
class Single:
    """A tensor that a checkpoint holds as it is."""

    stored: StoredTensor

    @property
    def dtype(self) -> str:
        """Of its elements."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.stored.shape

    def misfit(self, rows: Rows) -> str:
        """Return why it has not these rows; "" where it has."""
        return rows.misfit(self._layout)

    def pieces(self, rows: Rows | None) -> Iterator[Piece]:
        """Yield what must be read for these rows, which it has; None: for all of it."""
        if rows is None:
            yield Piece(self.stored, ())
            return
        first, end = rows.window(self._layout)
        shape, offset = rows.of(self._layout).shape, self.stored.offset + first
        yield Piece(replace(self.stored, shape=shape, nbytes=end - first, offset=offset), ())

    @property
    def _layout(self) -> Layout:
        stored = self.stored
        return Layout(stored.dtype, stored.shape, contiguous_strides(stored.shape), stored.nbytes)


@dataclass(frozen=True)
class Stack:
    """A tensor whose rows a checkpoint holds one by one, each in one part or several. All parts are of one dtype.

    Args:
        parts: For each part of a row that of all rows, of one shape.
    """

    parts: tuple[tuple[StoredTensor, ...], ...]

    @property
    def dtype(self) -> str:
        """Of its elements."""
        return self.parts[0][0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        first = self.parts[0][0].shape
        if len(self.parts) == 1:
            return (len(self.parts[0]), *first)
        return (len(self.parts[0]), sum(part[0].shape[0] for part in self.parts), *first[1:])

    def misfit(self, rows: Rows) -> str:
        """Return why it has not these rows; "" where it has."""
        count = len(self.parts[0])
        return "" if rows.stop <= count else f"it has {count} rows, not rows {rows}"

    def pieces(self, rows: Rows | None) -> Iterator[Piece]:
        """Yield what must be read for these rows, which it has; None: for all of it."""
        rows = rows or Rows(0, len(self.parts[0]))
        begin = 0
        for part in self.parts:
            end = begin + (part[0].shape[0] if len(self.parts) > 1 else 0)
            within = (slice(begin, end),) if len(self.parts) > 1 else ()
            yield from (Piece(part[row], (row - rows.start, *within)) for row in range(rows.start, rows.stop))
            begin = end


Source = Single | Stack


def source_of(name: str, recipe: Recipe, tensors: Mapping[str, StoredTensor]) -> Source:
    """Return where a tensor of the model comes from.

    Args:
        name: Of the model's tensor.
        recipe: Names tensors of the checkpoint.
        tensors: Of the checkpoint.

    Raises:
        CheckpointError: Rows are missing or differ from each other, or the recipe cannot be read row by row.
    """
    if recipe.obstacle:
        raise CheckpointError(
            f"'{name}' cannot be read from the files as it is: {recipe.obstacle}; let the model's own library load it, "
            "or load from a peer that has it"
        )
    if not recipe.stacked:
        return Single(tensors[recipe.parts[0][0]])
    parts = tuple(tuple(tensors[row] for row in _in_order(name, part)) for part in recipe.parts)
    _check_alike(name, parts)
    return Stack(parts)


def check_equal_counts(sources: Mapping[str, Source], folder: object) -> None:
    """Check that stacks of the same kind are of as many rows in all layers.

    A target that has some rows only does not know how many there are in all.

    Raises:
        CheckpointError: One has fewer: the checkpoint lacks the others.
    """
    kinds: dict[str, dict[int, str]] = {}
    for name, source in sources.items():
        if isinstance(source, Stack):
            kind = ".".join(word for word in name.split(".") if not word.isdigit())
            kinds.setdefault(kind, {}).setdefault(source.shape[0], name)
    for counts in kinds.values():
        if len(counts) > 1:
            few, many = min(counts), max(counts)
            raise CheckpointError(
                f"{folder} lacks experts: it has {few} for '{counts[few]}', and {many} for '{counts[many]}'; "
                "fetch it again"
            )


def _in_order(name: str, rows: Sequence[str]) -> list[str]:
    """Return the names of rows by their numbers, which are those that the stack's own name has not."""
    numbered: dict[int, str] = {}
    for row in rows:
        left = list((_numbers(row) - _numbers(name)).elements())
        if len(left) != 1 or left[0] in numbered:
            raise CheckpointError(f"'{row}' shall be a row of '{name}', and its name does not say which")
        numbered[left[0]] = row
    if (last := max(numbered)) >= len(numbered):
        missing = [str(number) for number in range(len(numbered)) if number not in numbered]
        raise CheckpointError(
            f"the checkpoint lacks experts of '{name}': it has '{numbered[last]}', and none of the numbers "
            f"{', '.join(missing[:5])}; fetch it again"
        )
    return [numbered[number] for number in range(len(numbered))]


def _numbers(name: str) -> Counter[int]:
    # What is longer is no number of a layer or an expert.
    return Counter(int(word) for word in name.split(".") if word.isdecimal() and len(word) < 10)


def _check_alike(name: str, parts: Sequence[Sequence[StoredTensor]]) -> None:
    counts = {len(part) for part in parts}
    if len(counts) > 1:
        raise CheckpointError(
            f"the checkpoint lacks experts of '{name}': of its parts {sorted(counts)} are there; fetch it again"
        )
    # Parts lie one behind the other in a row, and may be of different lengths; rows of one part may not.
    different = [
        stored.name
        for part in parts
        for stored in part
        if (stored.dtype, stored.shape) != (parts[0][0].dtype, part[0].shape)
        or (len(parts) > 1 and (not stored.shape or stored.shape[1:] != parts[0][0].shape[1:]))
    ]
    if different:
        raise CheckpointError(
            f"experts of '{name}' have other shapes or dtypes in the checkpoint than '{parts[0][0].name}': "
            f"{listed(different)}; fetch it again"
        )
