"""Pieces: the chunks of tensors on their way from a source's regions to a target's memory."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from modelexpress.transfer.manifest import Manifest

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


def cut(manifest: Manifest, addresses: Mapping[str, int]) -> Pieces:
    """Return every chunk of every tensor in `addresses`, in the order of the manifest.

    Publishers list their tensors in the order of their memory, so that is the order of the memory, too.

    Args:
        manifest: The source's manifest; it lists every name in `addresses`.
        addresses: Where each tensor's bytes go in this process; tied tensors are named once.
    """
    positions = np.fromiter((manifest.index[name] for name in addresses), np.int64, len(addresses))
    base = np.fromiter(addresses.values(), np.uint64, len(addresses))
    specs = [manifest.tensors[position] for position in positions]
    counts = np.diff(manifest.chunk_starts)[positions]
    owner = np.repeat(np.arange(len(specs)), counts)
    pieces = np.zeros(len(owner), PIECE)
    chunk = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = chunk * manifest.chunk_bytes
    sizes = np.fromiter((spec.nbytes for spec in specs), np.int64, len(specs))
    pieces["tensor"] = positions[owner]
    pieces["chunk"] = chunk
    pieces["region"] = np.fromiter((spec.region for spec in specs), np.int64, len(specs))[owner]
    pieces["offset"] = np.fromiter((spec.offset for spec in specs), np.int64, len(specs))[owner] + start
    pieces["address"] = base[owner] + start.astype(np.uint64)
    pieces["nbytes"] = np.minimum(sizes[owner] - start, manifest.chunk_bytes)
    pieces["digest"] = manifest.digests[manifest.chunk_starts[pieces["tensor"]] + chunk]
    return pieces[np.lexsort((pieces["chunk"], pieces["tensor"]))]


def overlapping(pieces: Pieces) -> npt.NDArray[np.bool_]:
    """Return for each piece whether its destination shares bytes with another piece's."""
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
