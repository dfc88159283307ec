"""The manifest: what a source holds, byte for byte, and the digests that prove it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from modelexpress.errors import ManifestInvalid
from modelexpress.transfer.digest import DIGEST_ALGORITHM
from modelexpress.wire.manifest_pages import manifest_pages
from modelexpress.wire.peer_pb2 import ManifestPage
from modelexpress.wire.records import FileSpec, TensorSpec
from modelexpress.wire.tensors import Integers, Tensors

Digests = npt.NDArray[np.uint64]

_MOST_BYTES = 1 << 60
"""Sums of sizes below this fit the signed 64-bit integers that plans are made of."""


class Scope(StrEnum):
    """Which tensors of a model a manifest lists."""

    MODULE = "module"
    """All parameters and buffers of a live module."""
    CHECKPOINT = "checkpoint"
    """The tensors of a checkpoint folder: buffers that a module computes for itself are not among them."""
    ARTIFACT = "artifact"
    """The files of a cache, each a tensor of bytes under its path."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A source's tensors, regions and digests.

    Args:
        scope: Which tensors are listed.
        chunk_bytes: Tensors are cut into chunks of so many bytes, the last one shorter.
        region_bytes: Size of each region.
        tensors: What is held, as columns; names are unique.
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
    tensors: Tensors
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
        self._check_density()
        if len(self.digests) != self.chunk_starts[-1]:
            raise ManifestInvalid(f"{self.chunk_starts[-1]} chunks need as many digests, not {len(self.digests)}")

    def _check_names(self) -> None:
        if len(self.index) != len(self):
            twice = next(name for name, count in Counter(self.names).items() if count > 1)
            raise ManifestInvalid(f"tensor '{twice}' is listed twice")

    def _check_bounds(self) -> None:
        region, offset, nbytes = self.tensors.regions, self.tensors.offsets, self.tensors.nbytes
        known = (region >= 0) & (region < len(self.region_bytes))
        # A region that is not there has less than no bytes, so that nothing fits into it.
        room = np.array([*self.region_bytes, -1], np.int64)[np.where(known, region, -1)]
        inside = (offset >= 0) & (nbytes >= 0) & (nbytes <= room - offset)
        if not inside.all():
            tensor = self.tensor(int(np.argmin(inside)))
            raise ManifestInvalid(
                f"tensor '{tensor.name}' ({tensor.nbytes} bytes at {tensor.offset}) lies outside region "
                f"{tensor.region} of {len(self.region_bytes)}"
            )

    def _check_density(self) -> None:
        dense = np.array([is_dense(each.shape, each.strides) for each in self.tensors.layouts], np.bool_)
        gaps = np.flatnonzero(~dense[self.tensors.layout_index])
        if len(gaps):
            tensor = self.tensor(int(gaps[0]))
            raise ManifestInvalid(
                f"tensor '{tensor.name}' of shape {tensor.shape} has strides {tensor.strides}, which leave gaps"
            )

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return self.tensors.names

    @property
    def index(self) -> Mapping[str, int]:
        """Position of each tensor by name."""
        return self.tensors.index

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors; those that share memory are counted once each."""
        return sum(self.tensors.nbytes.tolist())

    @cached_property
    def chunk_starts(self) -> Integers:
        """For each tensor the index of its first digest; one more entry ends the last tensor."""
        return np.concatenate(([0], np.cumsum(-(-self.tensors.nbytes // self.chunk_bytes))))

    @cached_property
    def pages(self) -> tuple[ManifestPage, ...]:
        """The tensors and digests as messages, the same ones for every reader."""
        return manifest_pages(self.tensors, self.digests, self.chunk_starts)

    def tensor(self, position: int) -> TensorSpec:
        """Return the tensor at `position`."""
        return self.tensors[position]

    def tensor_digests(self, position: int) -> Digests:
        """Return the digests of the tensor at `position`, chunk by chunk."""
        return self.digests[self.chunk_starts[position] : self.chunk_starts[position + 1]]

    def placed(self, region_bytes: tuple[int, ...], regions: Integers, offsets: Integers) -> "Manifest":
        """Return the manifest of the same tensors in other memory.

        Args:
            region_bytes: Size of each region.
            regions: Index of the region of each tensor.
            offsets: Bytes from the beginning of that region to each tensor.

        Raises:
            ManifestInvalid: A tensor lies outside its region.
        """
        return replace(self, region_bytes=region_bytes, tensors=self.tensors.moved(regions, offsets))

    def same_content(self, other: "Manifest") -> bool:
        """Return whether both list the same tensors, cut alike, with the same digests, in the same order."""
        return (
            self.chunk_bytes == other.chunk_bytes
            and np.array_equal(self.digests, other.digests)
            and self.tensors.alike(other.tensors)
        )


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
