"""The ledger: which chunks are in place and verified, kept when a target goes from one source to the next."""

from collections.abc import Collection

import numpy as np

from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces, chunk_numbers, spread
from modelexpress.wire.tensors import Flags, Integers


class Ledger:
    """The chunks that a target has in place.

    A chunk is carried over to another source only where that source's digest is the same. So whatever a load
    returns is, chunk by chunk, what the last source published: never a mixture of two.

    There is one flag a chunk, in the order of the manifest that was asked about last.
    """

    def __init__(self) -> None:
        self._manifest: Manifest | None = None
        self._verified = np.zeros(0, np.bool_)

    def record(self, manifest: Manifest, pieces: Pieces) -> None:
        """Note that `pieces` are in place and match their digests."""
        self._follow(manifest)[chunk_numbers(manifest, pieces)] = True

    def held(self, manifest: Manifest, pieces: Pieces) -> Flags:
        """Return for each piece whether it is in place with the digest that this manifest gives it."""
        held: Flags = self._follow(manifest)[chunk_numbers(manifest, pieces)]
        return held

    def forget(self, manifest: Manifest, pieces: Pieces) -> None:
        """Note that `pieces` are about to be overwritten."""
        self._follow(manifest)[chunk_numbers(manifest, pieces)] = False

    def forget_tensors(self, names: Collection[str]) -> None:
        """Note that nothing of these tensors is in place."""
        if self._manifest is None:
            return
        starts = self._manifest.chunk_starts
        positions = self._manifest.tensors.positions(tuple(names))
        for position in positions[positions >= 0].tolist():
            self._verified[starts[position] : starts[position + 1]] = False

    def _follow(self, manifest: Manifest) -> Flags:
        """Return the flags in the order of `manifest`, of which those stay set that are true of it, too."""
        before, verified = self._manifest, self._verified
        if before is not manifest:
            self._manifest, self._verified = manifest, np.zeros(len(manifest.digests), np.bool_)
            if before is not None and verified.any():
                old, new = _counterparts(before, manifest)
                self._verified[new] = verified[old] & (before.digests[old] == manifest.digests[new])
        return self._verified


def _counterparts(before: Manifest, after: Manifest) -> tuple[Integers, Integers]:
    """Return the numbers of the chunks that both manifests list, in the one and in the other.

    They are those of tensors with the same name and layout: in another order of its elements a tensor was received
    elsewhere.
    """
    if before.chunk_bytes != after.chunk_bytes:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if before.tensors.alike(after.tensors):
        return np.arange(len(before.digests)), np.arange(len(after.digests))
    old, new = before.tensors.counterparts(after.tensors)
    rows, chunk = spread(np.diff(after.chunk_starts)[new])
    return before.chunk_starts[old][rows] + chunk, after.chunk_starts[new][rows] + chunk
