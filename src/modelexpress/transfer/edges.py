"""Edges: chunks that stick out of the window of their tensor.

Digests cover whole chunks, so an edge travels whole. It lands in a slot of the scratch, is checked there, and what is
wanted of it is copied into place. There are no more slots than batches that may be on their way, whatever the model.
"""

import ctypes
from contextlib import closing

import numpy as np

from modelexpress.memory import ALIGNMENT, aligned
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Addresses, Pieces, Windows
from modelexpress.wire.tensors import Flags, Integers

SLOTS = 3
"""At least as many as batches may be on their way at once (`pull.WINDOW`)."""

_SLOT_BYTES = 32 << 20
"""A slot takes one chunk at least, and so many bytes where chunks are small."""


class Edges:
    """Tells the edges among pieces, and puts what is wanted of them in place.

    Args:
        manifest: The source's.
        destinations: Where each tensor's wanted bytes go.
        windows: Theirs.
    """

    def __init__(self, manifest: Manifest, destinations: Addresses, windows: Windows) -> None:
        order = np.argsort(destinations.positions, kind="stable")
        self._chunk_bytes = manifest.chunk_bytes
        self._tensors = destinations.positions[order]
        self._addresses = destinations.addresses[order]
        self._first, self._end = windows.first[order], windows.end[order]
        self._scratch = windows.scratch

    @property
    def slot_bytes(self) -> int:
        """Bytes of edges that fit into a slot, in terms of `room`."""
        return self._scratch.slot_bytes

    def parts(self, pieces: Pieces) -> Pieces:
        """Return what is wanted of pieces, at its place."""
        rows = np.searchsorted(self._tensors, pieces["tensor"])
        first, end = (bound[rows] - pieces["chunk"] * self._chunk_bytes for bound in (self._first, self._end))
        skipped = np.maximum(first, 0)
        parts = pieces.copy()
        parts["offset"] += skipped
        parts["address"] = self._addresses[rows] + (skipped - first).astype(np.uint64)
        parts["nbytes"] = np.minimum(end, pieces["nbytes"]) - skipped
        return parts

    def among(self, pieces: Pieces) -> Flags:
        """Return for each piece whether more travels of it than is wanted."""
        edges: Flags = self.parts(pieces)["nbytes"] < pieces["nbytes"]
        return edges

    def room(self, pieces: Pieces) -> Integers:
        """Return how many bytes of a slot each piece takes, so that all begin where reading them is fast."""
        room: Integers = -(-pieces["nbytes"] // ALIGNMENT) * ALIGNMENT
        return room

    def placed(self, pieces: Pieces, number: int) -> Pieces:
        """Return pieces with their addresses in the slot of the batch of edges of that number."""
        room, moved = self.room(pieces), pieces.copy()
        slot = self._scratch.address + number % SLOTS * self._scratch.slot_bytes
        moved["address"] = np.uint64(slot) + (np.cumsum(room) - room).astype(np.uint64)
        return moved

    def put(self, pieces: Pieces) -> None:
        """Copy what is wanted of pieces in the scratch to its place; it is there on return.

        Raises:
            DeviceError: The device failed.
        """
        parts = self.parts(pieces)
        sources = pieces["address"] + (parts["offset"] - pieces["offset"]).astype(np.uint64)
        columns = (parts["address"], sources, parts["nbytes"])
        _copy(self._scratch.device, list(zip(*(column.tolist() for column in columns), strict=True)))


def slot_bytes(manifest: Manifest, positions: Integers, first: Integers, end: Integers) -> int:
    """Return how large the slots of the scratch must be; 0 where no chunk sticks out.

    Args:
        manifest: The source's.
        positions: Of tensors in the manifest.
        first: Where the window of each begins.
        end: Where it ends.
    """
    chunk, nbytes = manifest.chunk_bytes, manifest.tensors.nbytes[positions]
    heads, tails = first % chunk > 0, (end % chunk > 0) & (end < nbytes)
    if not (heads | tails).any():
        return 0
    largest = aligned(min(chunk, int(nbytes[heads | tails].max())))
    return max(largest, min(largest * int(heads.sum() + tails.sum()), _SLOT_BYTES))


def _copy(device: int | None, copies: list[tuple[int, int, int]]) -> None:
    """Copy within the memory of the host, or of a device: (destination, source, bytes) each."""
    if device is None:
        for copy in copies:
            ctypes.memmove(*copy)
        return
    # Only where a GPU is involved: hosts without one never import what reaches for it.
    from modelexpress.memory.cuda_copy import Stream
    from modelexpress.memory.cuda_driver import driver

    with driver().on(device), closing(Stream()) as stream:
        try:
            for copy in copies:
                stream.copy(*copy)
        finally:
            stream.finish()
