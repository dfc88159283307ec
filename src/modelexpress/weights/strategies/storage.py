"""Weights from storage: a checkpoint folder of safetensors files, memory-mapped."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modelexpress.errors import CheckpointError
from modelexpress.memory import memory_view
from modelexpress.weights.catalog import Model, copyable
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.recipe import Piece, Recipe, Source, check_equal_counts, source_of
from modelexpress.weights.report import COPY, Journal
from modelexpress.weights.small_files import listed
from modelexpress.weights.stored_tensor import StoredTensor
from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.target import Target
from modelexpress.weights.transformers_recipes import recipes_for

_CONVERTED = ("float64", "float32", "bfloat16", "float16")
"""Dtypes that say the same in another one of them; of others, such as 8-bit floats, the scale is elsewhere."""


@dataclass(frozen=True)
class StorageStrategy(Strategy):
    """Reads a checkpoint folder.

    Args:
        folder: With safetensors files, and an index where there are several.
        model: What is filled. Where it is one of transformers, the folder may be as transformers writes it, with each
            expert's weights under names of their own.
    """

    name = "storage"
    folder: Path
    model: Model | None = None

    def fill(self, target: Target, journal: Journal) -> None:
        """Fill the target from the folder. Floats of 16 bits or more are converted where the model has another dtype.

        Of tensors of which the target has some rows, nothing but these is read.

        Raises:
            CheckpointError: The folder is damaged, lacks tensors, or has other shapes.
        """
        with journal.stage("open checkpoint"):
            checkpoint = Checkpoint.open(self.folder)
            recipes = recipes_for(self.model, checkpoint.tensors)
        with checkpoint:
            sources = _match(target, checkpoint, recipes)
            pieces = _pieces(target, sources)
            total = sum(piece.stored.nbytes for _, piece in pieces)
            with journal.stage(COPY, total):
                done = 0
                target.written |= not all(target.catalogue.is_meta[position] for position in sources)
                for position, piece in pieces:
                    _copy(target.tensor(position), checkpoint, piece)
                    done += piece.stored.nbytes
                    journal.advance(done, total)
            target.commit()
            if unused := checkpoint.tensors.keys() - _used(recipes, target.catalogue.names):
                journal.notes.append(f"the checkpoint holds tensors that the model lacks: {listed(unused)}")
            journal.source, journal.nbytes = str(self.folder), total


def _match(target: Target, checkpoint: Checkpoint, recipes: Mapping[str, Recipe]) -> dict[int, Source]:
    """Return for every memory of the model, by the position of its first tensor there, where it comes from."""
    model = target.catalogue
    entries = list(enumerate(zip(model.names, model.memories.tolist(), strict=True)))
    first = {memory: position for position, (name, memory) in reversed(entries) if name in recipes}
    names, needed = model.names, model.persistent | model.is_meta
    found = {
        position: source_of(names[position], recipes[names[position]], checkpoint.tensors)
        for position in first.values()
    }
    missing = [name for position, (name, memory) in entries if memory not in first and needed[position]]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks tensors of the model: {listed(missing)}; buffers that checkpoints leave "
            "out must be built on a real device"
        )
    check_equal_counts({names[position]: source for position, source in found.items()}, checkpoint.folder)
    _check_shapes(target, found, checkpoint.folder)
    return found


def _check_shapes(target: Target, sources: Mapping[int, Source], folder: Path) -> None:
    different, scaled = [], []
    for position, source in sources.items():
        name, layout = target.catalogue.names[position], target.catalogue.kind(position).layout
        rows, shape = target.rows.get(position), source.shape
        part = shape if rows is None else (len(rows), *shape[1:])
        if part != layout.shape or (rows is not None and source.misfit(rows)):
            here = f"{list(layout.shape)}, for rows {rows}," if rows else list(layout.shape)
            different.append(f"'{name}' ({list(shape)} in the files, {here} in the model)")
        elif source.dtype != layout.dtype and not {source.dtype, layout.dtype} <= set(_CONVERTED):
            scaled.append(f"'{name}' ({source.dtype} in the files, {layout.dtype} in the model)")
    if different:
        raise CheckpointError(f"{folder} holds other shapes than the model: {listed(different)}")
    if scaled:
        raise CheckpointError(
            f"{folder} holds dtypes that cannot be converted without more knowledge: {listed(scaled)}; build the model "
            "with the dtypes of the files"
        )


def _pieces(target: Target, sources: Mapping[int, Source]) -> list[tuple[int, Piece]]:
    """Return what is read for each position, in the order of the files."""
    found = [
        (position, piece) for position, source in sources.items() for piece in source.pieces(target.rows.get(position))
    ]
    return sorted(found, key=lambda each: (each[1].stored.file, each[1].stored.offset))


def _used(recipes: Mapping[str, Recipe], names: Iterable[str]) -> set[str]:
    """Return the names of stored tensors that are in the model, also where it ties them to others."""
    return {row for name in names if name in recipes for part in recipes[name].parts for row in part}


def _copy(tensor: torch.Tensor, checkpoint: Checkpoint, piece: Piece) -> None:
    stored = piece.stored
    if not stored.nbytes:
        return
    raw = _content(checkpoint, stored).view(getattr(torch, stored.dtype)).view(stored.shape)
    place = tensor[piece.place] if piece.place else tensor
    with torch.no_grad():
        if place.dtype == raw.dtype:
            copyable(place).copy_(copyable(raw))
        else:
            place.copy_(raw)


def _content(checkpoint: Checkpoint, stored: StoredTensor) -> torch.Tensor:
    """Return the bytes of a stored tensor, or of a part of it, aligned for its dtype."""
    whole = checkpoint.tensors[stored.name]
    # By address, because torch warns of read-only buffers even when they are only read.
    content = np.frombuffer(checkpoint.buffer(stored.name), np.uint8)[stored.offset - whole.offset :]
    raw = torch.frombuffer(memory_view(content.ctypes.data, stored.nbytes), dtype=torch.uint8)
    return raw.clone() if stored.offset % getattr(torch, stored.dtype).itemsize else raw
