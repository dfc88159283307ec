"""Passing on: a target's memory as what its worker serves, while it is still being filled."""

from collections.abc import Mapping, Sequence

import numpy as np

from modelexpress.peer import Material, Publication, Relay
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces, chunk_numbers, spread
from modelexpress.transfer.prefix import Integers
from modelexpress.weights.relaying import Relaying
from modelexpress.weights.settle import settle
from modelexpress.weights.target import Target


class PassingOn(Relaying):
    """What a target has received and verified, served to others.

    The target's memory moves where other processes can read it, as it does when a model is published.

    Args:
        relay: Of the worker that serves.
        target: What is filled.
        rank: Of this worker within its replica.

    Raises:
        UnsupportedModel: The memory cannot be offered.
        DeviceError: The CUDA driver cannot be asked.
    """

    def __init__(self, relay: Relay, target: Target, rank: int) -> None:
        super().__init__(relay)
        self._target = target
        self._rank = rank
        self._settled = settle(target.settled_entries(), keep=target.keep)
        relay.prepare(self._settled.regions)

    def open(self, manifest: Manifest, files: Mapping[str, bytes], planned: Sequence[Pieces]) -> None:
        """Begin to serve what a source's manifest lists, apart from what is still planned.

        Nothing is served where a tensor is received beside the model, because its elements lie in another order.

        Args:
            manifest: The source's.
            files: The small files that belong to the material.
            planned: Every piece that will travel.
        """
        if self._target.staged:
            self._relay.close()
            return
        regions = self._settled.regions
        numbers, offsets = self._settled.places(manifest.names)
        own = manifest.placed(tuple(region.nbytes for region in regions), numbers, offsets)
        material = Material(self._relay.identity, self._rank, own, regions, self._settled.owners, files)
        twins = self._twins(manifest)
        self._relay.open(material, twins)
        missing = np.concatenate([twins[:, 0], *(chunk_numbers(manifest, pieces) for pieces in planned)])
        kept = np.ones(len(manifest.digests), bool)
        kept[missing] = False
        self._relay.verified(np.flatnonzero(kept))

    def publish(self) -> Publication | None:
        """Go on as a source, now that everything is there; None where it cannot be served."""
        return self._relay.publish()

    def _twins(self, manifest: Manifest) -> Integers:
        """Return pairs of chunks that are the same memory here: of a tied tensor, and of the one that is filled."""
        filled = self._target.filled(manifest)
        tied = np.flatnonzero(filled != np.arange(len(manifest)))
        starts = manifest.chunk_starts
        rows, chunk = spread(np.diff(starts)[tied])
        return np.stack([starts[tied][rows] + chunk, starts[filled[tied]][rows] + chunk], axis=1)
