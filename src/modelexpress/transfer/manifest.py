"""The manifest: what a source holds, byte for byte, and the digests that prove it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from modelexpress.errors import ManifestInvalid
from modelexpress.transfer.digest import DIGEST_ALGORITHM
from modelexpress.wire.records import FileSpec, TensorSpec

Digests = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

_MOST_BYTES = 1 << 60
"""Sums of sizes below this fit the signed 64-bit integers that plans are made of."""


class Scope(StrEnum):
    """Which tensors of a model a manifest lists."""

    MODULE = "module"
    """All parameters and buffers of a live module."""
    CHECKPOINT = "checkpoint"
    """The tensors of a checkpoint folder: buffers that a module computes for itself are not among them."""


@dataclass(frozen=True)
class Manifest:
    """A source's tensors, regions and digests.

    Args:
        scope: Which tensors are listed.
        chunk_bytes: Tensors are cut into chunks of so many bytes, the last one shorter.
        region_bytes: Size of each region.
        tensors: What is held; names are unique.
        digests: One digest a chunk: those of the first tensor in order, then of the second, and so on.
        files: Small files that belong to the material.
        digest_algorithm: The definition that the digests follow.

    Raises:
        ManifestInvalid: A tensor lies outside its region, a name appears twice, the digests are not one a chunk,
            or the digest algorithm is unknown here.
    """

    scope: Scope
    chunk_bytes: int
    region_bytes: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    digests: Digests
    files: tuple[FileSpec, ...] = ()
    digest_algorithm: str = DIGEST_ALGORITHM

    def __post_init__(self) -> None:
        if self.digest_algorithm != DIGEST_ALGORITHM:
            raise ManifestInvalid(
                f"the source uses the digest '{self.digest_algorithm}', this process knows "
                f"'{DIGEST_ALGORITHM}': run the same version of modelexpress on both sides"
            )
        if self.chunk_bytes < 1:
            raise ManifestInvalid(f"chunks of {self.chunk_bytes} bytes are not possible")
        if sum(self.region_bytes) >= _MOST_BYTES:
            raise ManifestInvalid(f"regions of {sum(self.region_bytes)} bytes are not possible")
        self._check_names()
        self._check_bounds()
        if len(self.digests) != self.chunk_starts[-1]:
            raise ManifestInvalid(f"{self.chunk_starts[-1]} chunks need as many digests, not {len(self.digests)}")

    def _check_names(self) -> None:
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            twice = next(name for name, count in Counter(t.name for t in self.tensors).items() if count > 1)
            raise ManifestInvalid(f"tensor '{twice}' is listed twice")

    def _check_bounds(self) -> None:
        for tensor in self.tensors:
            inside = (
                0 <= tensor.region < len(self.region_bytes)
                and tensor.offset >= 0
                and 0 <= tensor.nbytes <= self.region_bytes[tensor.region] - tensor.offset
            )
            if not inside:
                raise ManifestInvalid(
                    f"tensor '{tensor.name}' ({tensor.nbytes} bytes at {tensor.offset}) lies outside region "
                    f"{tensor.region} of {len(self.region_bytes)}"
                )
            if not is_dense(tensor.shape, tensor.strides):
                raise ManifestInvalid(
                    f"tensor '{tensor.name}' of shape {tensor.shape} has strides {tensor.strides}, which leave gaps"
                )

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors; those that share memory are counted once each."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def chunk_starts(self) -> Integers:
        """For each tensor the index of its first digest; one more entry ends the last tensor."""
        sizes = np.fromiter((t.nbytes for t in self.tensors), np.int64, len(self.tensors))
        return np.concatenate(([0], np.cumsum(-(-sizes // self.chunk_bytes))))

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each tensor by name."""
        return {tensor.name: position for position, tensor in enumerate(self.tensors)}

    def tensor_digests(self, position: int) -> Digests:
        """Return the digests of the tensor at `position`, chunk by chunk."""
        return self.digests[self.chunk_starts[position] : self.chunk_starts[position + 1]]


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether elements at these strides fill one range without gaps or overlap, in any order."""
    if 0 in shape or tuple(strides) == contiguous_strides(shape):
        return len(shape) == len(strides)
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=False)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return len(shape) == len(strides)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of `shape`."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
