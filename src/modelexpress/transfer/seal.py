"""Sealing: computing the digests of what is about to be published."""

from collections.abc import Iterable, Sequence

import numpy as np

from modelexpress.memory import Region
from modelexpress.transfer.digest import Column
from modelexpress.transfer.digester import digester
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.transfer.pieces import spread
from modelexpress.wire.records import FileSpec, TensorSpec
from modelexpress.wire.tensors import Integers, Tensors


def seal(
    tensors: Tensors | Iterable[TensorSpec],
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
    listed = Tensors.of(tensors)
    base = np.array([region.address for region in regions], np.uint64)[listed.regions]
    owner, chunk = spread(-(-listed.nbytes // chunk_bytes))
    start = chunk * chunk_bytes
    lengths = np.minimum(listed.nbytes[owner] - start, chunk_bytes)
    addresses = base[owner] + (listed.offsets[owner] + start).astype(np.uint64)
    digests = _digests(addresses, lengths.astype(np.uint64), listed.regions[owner], regions)
    region_bytes = tuple(region.nbytes for region in regions)
    return Manifest(scope, chunk_bytes, region_bytes, listed, digests, tuple(files))


def _digests(addresses: Column, lengths: Column, owners: Integers, regions: Sequence[Region]) -> Column:
    """Return the digest of each range of memory, of which `owners` says the region that it lies in."""
    digests = np.empty(len(lengths), np.uint64)
    for device in {region.device for region in regions}:
        chosen = np.array([region.device == device for region in regions])[owners]
        digests[chosen] = digester(device).start(addresses[chosen], lengths[chosen]).result()
    return digests
