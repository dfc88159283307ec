"""The ledger: which chunks are in place and verified, kept when a target goes from one source to the next."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces


class Ledger:
    """Digests of the chunks that a target has in place.

    A chunk is carried over to another source only where that source's digest is the same. So whatever a load
    returns is, chunk by chunk, what the last source published: never a mixture of two.
    """

    def __init__(self) -> None:
        self._verified: dict[tuple[str, int, int], int] = {}

    def record(self, manifest: Manifest, pieces: Pieces) -> None:
        """Note that `pieces` are in place and match their digests."""
        for key, digest in zip(_keys(manifest, pieces), pieces["digest"].tolist(), strict=True):
            self._verified[key] = digest

    def held(self, manifest: Manifest, pieces: Pieces) -> npt.NDArray[np.bool_]:
        """Return for each piece whether it is in place with the digest that this manifest gives it."""
        if not self._verified:
            return np.zeros(len(pieces), bool)
        found = (
            self._verified.get(key) == digest
            for key, digest in zip(_keys(manifest, pieces), pieces["digest"].tolist(), strict=True)
        )
        return np.fromiter(found, bool, len(pieces))

    def forget(self, manifest: Manifest, pieces: Pieces) -> None:
        """Note that `pieces` are about to be overwritten."""
        if self._verified:
            for key in _keys(manifest, pieces):
                self._verified.pop(key, None)

    def forget_tensors(self, names: Collection[str]) -> None:
        """Note that nothing of these tensors is in place."""
        self._verified = {key: digest for key, digest in self._verified.items() if key[0] not in names}


def _keys(manifest: Manifest, pieces: Pieces) -> list[tuple[str, int, int]]:
    return [
        (manifest.tensors[tensor].name, chunk, manifest.chunk_bytes)
        for tensor, chunk in zip(pieces["tensor"].tolist(), pieces["chunk"].tolist(), strict=True)
    ]
