"""Pieces: the chunks of tensors on their way from a source's regions to a target's memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelexpress.transfer.manifest import Manifest
from modelexpress.wire.tensors import Flags, Integers

PIECE = np.dtype(
    [
        ("tensor", np.int64),
        ("chunk", np.int64),
        ("region", np.int64),
        ("offset", np.int64),
        ("address", np.uint64),
        ("nbytes", np.int64),
        ("digest", np.uint64),
    ]
)
"""One chunk of one tensor: which it is, where from, where to, how long, and its digest."""

Pieces = npt.NDArray[np.void]


@dataclass(frozen=True)
class Scratch:
    """Memory beside the model where chunks land of which only a part is wanted.

    Args:
        address: Of `edges.SLOTS` slots, one after the other.
        slot_bytes: Size of a slot; 0: no chunk needs one.
        device: The CUDA device whose memory it is; None: host memory.
    """

    address: int
    slot_bytes: int
    device: int | None


@dataclass(frozen=True, eq=False)
class Windows:
    """Which bytes are wanted of tensors of which not all are: one window a tensor.

    Args:
        first: The first byte of the tensor that is wanted.
        end: The one behind the last; no window is empty.
        scratch: For the chunks that stick out.
    """

    first: Integers
    end: Integers
    scratch: Scratch


@dataclass(frozen=True, eq=False)
class Addresses:
    """Where tensors of a manifest go in this process.

    Args:
        positions: Of the tensors in the manifest; tied tensors are named once.
        addresses: For each of them, where its first byte goes, or the first one in its window.
        windows: Which bytes of each are wanted; None: all of them.
    """

    positions: Integers
    addresses: npt.NDArray[np.uint64]
    windows: Windows | None = None

    @classmethod
    def of(cls, manifest: Manifest, addresses: Mapping[str, int]) -> "Addresses":
        """Return the addresses of tensors that are given by name; the manifest lists every one."""
        positions = (manifest.index[name] for name in addresses)
        return cls(
            np.fromiter(positions, np.int64, len(addresses)),
            np.fromiter(addresses.values(), np.uint64, len(addresses)),
        )


def cut(manifest: Manifest, destinations: Addresses) -> Pieces:
    """Return every chunk of every tensor that has a destination, in the order of the manifest.

    Publishers list their tensors in the order of their memory, so that is the order of the memory, too. Of tensors with
    a window these are the chunks that reach into it, whole, each at the address that fits what is wanted of it.

    Args:
        manifest: The source's manifest.
        destinations: Where each tensor's bytes go in this process.
    """
    order = np.argsort(destinations.positions, kind="stable")
    positions, addresses = destinations.positions[order], destinations.addresses[order]
    if destinations.windows is None:
        rows, chunk = spread(np.diff(manifest.chunk_starts)[positions])
    else:
        first, end = destinations.windows.first[order], destinations.windows.end[order]
        leading = first // manifest.chunk_bytes
        rows, chunk = spread(-(-end // manifest.chunk_bytes) - leading)
        chunk += leading[rows]
        addresses = addresses - first.astype(np.uint64)
    tensor = positions[rows]
    start = chunk * manifest.chunk_bytes
    pieces = np.empty(len(rows), PIECE)
    pieces["tensor"] = tensor
    pieces["chunk"] = chunk
    pieces["region"] = manifest.tensors.regions[tensor]
    pieces["offset"] = manifest.tensors.offsets[tensor] + start
    pieces["address"] = addresses[rows] + start.astype(np.uint64)
    pieces["nbytes"] = np.minimum(manifest.tensors.nbytes[tensor] - start, manifest.chunk_bytes)
    pieces["digest"] = manifest.digests[manifest.chunk_starts[tensor] + chunk]
    return pieces


def spread(counts: Integers) -> tuple[Integers, Integers]:
    """Return, for as many chunks of each tensor as `counts` says, the row of the tensor and the number of the chunk."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def chunk_numbers(manifest: Manifest, pieces: Pieces) -> Integers:
    """Return the number of each piece among all chunks of the manifest, which is also that of its digest."""
    numbers: Integers = manifest.chunk_starts[pieces["tensor"]] + pieces["chunk"]
    return numbers


def overlapping(pieces: Pieces) -> Flags:
    """Return for each piece whether its destination shares bytes with another piece's."""
    if np.all(pieces["address"][1:] >= (pieces["address"] + pieces["nbytes"].astype(np.uint64))[:-1]):
        return np.zeros(len(pieces), np.bool_)
    order = np.argsort(pieces["address"], kind="stable")
    start = pieces["address"][order]
    end = start + pieces["nbytes"][order].astype(np.uint64)
    reached = np.maximum.accumulate(end)
    shares = np.zeros(len(pieces), bool)
    touches_earlier = start[1:] < reached[:-1]
    shares[1:] |= touches_earlier
    # Whoever reaches furthest so far is the one that is touched.
    furthest = np.maximum.accumulate(np.where(end == reached, np.arange(len(end)), 0))
    shares[furthest[:-1][touches_earlier]] = True
    result = np.zeros(len(pieces), bool)
    result[order] = shares
    return result
