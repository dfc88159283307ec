"""Weights from storage: a checkpoint folder of safetensors files, memory-mapped."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from modelexpress.errors import CheckpointError
from modelexpress.memory import memory_view
from modelexpress.transfer.manifest import contiguous_strides
from modelexpress.transfer.rows import Rows
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.report import COPY, Journal
from modelexpress.weights.small_files import listed
from modelexpress.weights.stored_tensor import StoredTensor
from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.target import Target
from modelexpress.wire.tensors import Layout


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

        Of tensors of which the target has some rows, nothing but these is read.

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
    entries = list(enumerate(zip(model.names, model.memories.tolist(), strict=True)))
    pairs = {memory: (position, stored[name]) for position, (name, memory) in reversed(entries) if name in stored}
    needed = model.persistent | model.is_meta
    missing = [name for position, (name, memory) in entries if memory not in pairs and needed[position]]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks tensors of the model: {listed(missing)}; buffers that checkpoints leave "
            "out must be built on a real device"
        )
    found, different = [], []
    for position, whole in pairs.values():
        rows, shape = target.rows.get(position), model.kind(position).layout.shape
        part = _part(whole, rows)
        if part is not None and part.shape == shape:
            found.append((position, part))
        else:
            here = f"{list(shape)}, for rows {rows}," if rows else list(shape)
            different.append(f"'{model.names[position]}' ({list(whole.shape)} in the files, {here} in the model)")
    if different:
        raise CheckpointError(f"{checkpoint.folder} holds other shapes than the model: {listed(different)}")
    return sorted(found, key=lambda pair: (pair[1].file, pair[1].offset))


def _part(stored: StoredTensor, rows: Rows | None) -> StoredTensor | None:
    """Return the rows of a stored tensor that are wanted: itself where all are, None where it lacks some."""
    if rows is None:
        return stored
    layout = Layout(stored.dtype, stored.shape, contiguous_strides(stored.shape), stored.nbytes)
    if rows.misfit(layout):
        return None
    first, end = rows.window(layout)
    return replace(stored, shape=rows.of(layout).shape, nbytes=end - first, offset=stored.offset + first)


def _copy(tensor: torch.Tensor, checkpoint: Checkpoint, stored: StoredTensor) -> None:
    if not stored.nbytes:
        return
    dtype, whole = getattr(torch, stored.dtype), checkpoint.tensors[stored.name]
    # By address, because torch warns of read-only buffers even when they are only read.
    content = np.frombuffer(checkpoint.buffer(stored.name), np.uint8)[stored.offset - whole.offset :]
    raw = torch.frombuffer(memory_view(content.ctypes.data, stored.nbytes), dtype=torch.uint8)
    if stored.offset % dtype.itemsize:
        raw = raw.clone()
    with torch.no_grad():
        tensor.copy_(raw.view(dtype).view(stored.shape))
