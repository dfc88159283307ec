"""Rows: a part of a tensor along its first dimension, where that is all that a target has room for."""

import math
from dataclasses import dataclass, replace

from modelexpress.wire.tensors import Layout


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor: from `start` up to `stop`, which is not among them, as in a slice."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def misfit(self, whole: Layout) -> str:
        """Return why these rows are no range of a tensor's memory; "" where they are one."""
        if not whole.shape:
            return "it has no rows"
        if self.stop > whole.shape[0]:
            return f"it has {whole.shape[0]} rows, not rows {self}"
        if whole.nbytes and whole.shape[0] > 1 and whole.strides[0] * whole.shape[0] != math.prod(whole.shape):
            return f"its rows do not lie one after the other (strides {list(whole.strides)})"
        return ""

    def of(self, whole: Layout) -> Layout:
        """Return what these rows of a tensor are, taken for themselves; they fit it."""
        shape = (len(self), *whole.shape[1:])
        first, end = self.window(whole)
        return replace(whole, shape=shape, nbytes=end - first)

    def window(self, whole: Layout) -> tuple[int, int]:
        """Return the bytes of a tensor at which these rows begin and end; they fit it."""
        row_bytes = whole.nbytes // whole.shape[0]
        return self.start * row_bytes, self.stop * row_bytes
