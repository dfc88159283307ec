"""Weights from storage: a checkpoint folder of safetensors files, memory-mapped."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modelexpress.errors import CheckpointError
from modelexpress.memory import memory_view
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.report import COPY, Journal
from modelexpress.weights.small_files import listed
from modelexpress.weights.stored_tensor import StoredTensor
from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.target import Target


@dataclass(frozen=True)
class StorageStrategy(Strategy):
    """Reads a checkpoint folder.

    Args:
        folder: With safetensors files, and an index where there are several.
    """

    name = "storage"
    folder: Path

    def fill(self, target: Target, journal: Journal) -> None:
        """Fill the target from the folder. Values are converted where the model has another dtype.

        Raises:
            CheckpointError: The folder is damaged, lacks tensors, or has other shapes.
        """
        with journal.stage("open checkpoint"):
            checkpoint = Checkpoint.open(self.folder)
        with checkpoint:
            pairs = _match(target, checkpoint)
            total = sum(stored.nbytes for _, stored in pairs)
            with journal.stage(COPY, total):
                done = 0
                target.written |= not all(target.catalogue.is_meta[position] for position, _ in pairs)
                for position, stored in pairs:
                    _copy(target.tensor(position), checkpoint, stored)
                    done += stored.nbytes
                    journal.advance(done, total)
            target.commit()
            unused = checkpoint.tensors.keys() - set(target.catalogue.names)
            if unused:
                journal.notes.append(f"the checkpoint holds tensors that the model lacks: {listed(unused)}")
            journal.source, journal.nbytes = str(self.folder), total


def _match(target: Target, checkpoint: Checkpoint) -> list[tuple[int, StoredTensor]]:
    """Pair every memory of the model, by the position of its first tensor there, with the stored one that fills it."""
    model, stored = target.catalogue, checkpoint.tensors
    rows = list(enumerate(zip(model.names, model.memories.tolist(), strict=True)))
    pairs = {memory: (position, stored[name]) for position, (name, memory) in reversed(rows) if name in stored}
    needed = model.persistent | model.is_meta
    missing = [name for position, (name, memory) in rows if memory not in pairs and needed[position]]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks tensors of the model: {listed(missing)}; buffers that checkpoints leave "
            "out must be built on a real device"
        )
    different = [
        f"'{model.names[position]}' ({list(found.shape)} in the files, {list(shape)} in the model)"
        for position, found in pairs.values()
        if found.shape != (shape := model.kind(position).layout.shape)
    ]
    if different:
        raise CheckpointError(f"{checkpoint.folder} holds other shapes than the model: {listed(different)}")
    return sorted(pairs.values(), key=lambda pair: (pair[1].file, pair[1].offset))


def _copy(tensor: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor) -> None:
    if not stored.nbytes:
        return
    dtype = getattr(torch, stored.dtype)
    # By address, because torch warns of read-only buffers even when they are only read.
    content = np.frombuffer(checkpoint.buffer(stored.name), np.uint8)
    raw = torch.frombuffer(memory_view(content.ctypes.data, stored.nbytes), dtype=torch.uint8)
    if stored.offset % dtype.itemsize:
        raw = raw.clone()
    with torch.no_grad():
        tensor.copy_(raw.view(dtype).view(stored.shape))
