"""Sealing: computing the digests of what is about to be published."""

from collections.abc import Sequence

import numpy as np

from modelexpress.memory import Region
from modelexpress.transfer.digest import Column
from modelexpress.transfer.digester import digester
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.wire.records import FileSpec, TensorSpec


def seal(
    tensors: Sequence[TensorSpec],
    regions: Sequence[Region],
    *,
    scope: Scope,
    chunk_bytes: int,
    files: Sequence[FileSpec] = (),
) -> Manifest:
    """Return the manifest of tensors that lie in `regions` of this process, digests included.

    Raises:
        ManifestInvalid: A tensor lies outside its region.
    """
    sizes = np.fromiter((t.nbytes for t in tensors), np.int64, len(tensors))
    base = np.fromiter((regions[t.region].address + t.offset for t in tensors), np.uint64, len(tensors))
    counts = -(-sizes // chunk_bytes)
    owner = np.repeat(np.arange(len(tensors)), counts)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)) * chunk_bytes
    lengths = np.minimum(sizes[owner] - start, chunk_bytes)
    addresses = base[owner] + start.astype(np.uint64)
    digests = _digests(
        addresses, lengths.astype(np.uint64), [regions[tensors[t].region].device for t in owner.tolist()]
    )
    region_bytes = tuple(region.nbytes for region in regions)
    return Manifest(scope, chunk_bytes, region_bytes, tuple(tensors), digests, tuple(files))


def _digests(addresses: Column, lengths: Column, devices: Sequence[int | None]) -> Column:
    digests = np.empty(len(lengths), np.uint64)
    for device in set(devices):
        chosen = np.fromiter((each == device for each in devices), bool, len(devices))
        digests[chosen] = digester(device)(addresses[chosen], lengths[chosen])
    return digests
