"""Passing on: the file of one rank as what its worker serves, while it is still being received."""

from collections.abc import Mapping, Sequence

import numpy as np

from modelexpress.engines.trtllm.partial_folder import MappedFile
from modelexpress.engines.trtllm.rank_room import RankRoom
from modelexpress.identity import SourceIdentity
from modelexpress.memory import Region
from modelexpress.peer import Material, Worker
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces, chunk_numbers
from modelexpress.weights.relaying import Relaying
from modelexpress.weights.safetensors_header import parse_header


class RankRelay(Relaying):
    """What has arrived of a rank and is verified, served to others out of the mapped file.

    Args:
        worker: Serves; owned from now on, unless this raises.
        identity: Of the checkpoint, as its source has it.
        rank: Which one.
        room: Has the file.

    Raises:
        ConfigurationError: The worker is closed.
        IdentityError: The protocol cannot carry the identity.
    """

    def __init__(self, worker: Worker, identity: SourceIdentity, rank: int, room: RankRoom) -> None:
        super().__init__(worker.relay(identity))
        self._worker = worker
        self._rank = rank
        self._room = room
        self._file: MappedFile | None = None

    def open(self, manifest: Manifest, files: Mapping[str, bytes], planned: Sequence[Pieces]) -> None:
        """Begin to serve what a source's manifest lists, apart from what is still planned.

        Args:
            manifest: The source's, to which the room is open.
            files: The small files that belong to the rank.
            planned: Every piece that will travel.
        """
        file = self._room.file
        assert file is not None, "the room has been opened"
        # No descriptor: who gets one of a file can open it again for writing. So the bytes are sent, never handed over.
        region = Region(file.address, len(file.content))
        if self._file is None:
            self._file = file
            self._relay.prepare([region])
        own = _placed(manifest, file)
        material = Material(self._relay.identity, self._rank, own, (region,), (file.content,), files)
        self._relay.open(material, np.empty((0, 2), np.int64))
        kept = np.ones(len(manifest.digests), np.bool_)
        for pieces in planned:
            kept[chunk_numbers(manifest, pieces)] = False
        self._relay.verified(np.flatnonzero(kept))

    def sweep(self) -> None:
        """Let go of the memory that readers have touched again since it was released."""
        if self._file is not None:
            self._file.let_go(0, self._room.released)

    def readers(self) -> dict[str, int]:
        """Return who reads here, by worker id, and how many bytes each has verified."""
        return {reader.reader_id: reader.verified_bytes for reader in self._relay.readers}

    def close(self) -> None:
        """Withdraw the rank and end the worker: readers go elsewhere with what they have. Closing twice is allowed."""
        self._relay.close()
        self._worker.close()
        self._file = None


def _placed(manifest: Manifest, file: MappedFile) -> Manifest:
    """Return the manifest of the same tensors where the header of a file says that they are."""
    offsets = {tensor.name: tensor.offset for tensor in parse_header(file.content, file.path)}
    places = np.array([offsets[name] for name in manifest.names], np.int64)
    return manifest.placed((len(file.content),), np.zeros(len(manifest), np.int64), places)
