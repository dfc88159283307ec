"""Small tensors with a row for each expert (biases, scales): every rank keeps them whole."""

from collections.abc import Sequence
from typing import cast

import torch

from modelexpress.dwdp.model import ExpertLayer, StackedTensor
from modelexpress.dwdp.partition import Partition
from modelexpress.dwdp.ranks import Ranks
from modelexpress.dwdp.undo import Undo
from modelexpress.errors import ExpertsUnsupported


def gather_small(layers: Sequence[ExpertLayer], partitions: Sequence[Partition], ranks: Ranks, undo: Undo) -> None:
    """Complete the small tensors of all layers that were loaded with this rank's experts only.

    Raises:
        ExpertsUnsupported: Two ranks that hold the same expert have different values for it.
        RankLost: A rank ended, or did not answer within the deadline.
    """
    for layer, partition in zip(layers, partitions, strict=True):
        cut = [small for small in layer.small if small.tensor.shape[0] == partition.per_rank != partition.num_experts]
        gathered = ranks.gather([_bytes(small.tensor.data.cpu()) for small in cut])
        for small, *parts in zip(cut, *gathered, strict=True):
            rows = [part.view(small.tensor.dtype) for part in cast(list[torch.Tensor], parts)]
            full = _joined(f"{layer.name}: {small.name}", rows, partition)
            _bind(small, full, undo)


def _joined(name: str, rows: Sequence[torch.Tensor], partition: Partition) -> torch.Tensor:
    """Return the rows of all ranks by expert; where ranges overlap they must agree, to the bit."""
    full = torch.empty((partition.num_experts, *rows[0].shape[1:]), dtype=rows[0].dtype, device="cpu")
    for rank, part in enumerate(rows):
        held = partition.held(rank)
        known = partition.held(rank - 1).stop - held.start if rank else 0
        if known and not _same(part[:known], full[held.start : held.start + known]):
            raise ExpertsUnsupported(
                f"{name}: ranks {rank - 1} and {rank} have different values for experts {held.start} to "
                f"{held.start + known - 1}, which both hold: load all ranks from one checkpoint"
            )
        full[held.start : held.stop] = part
    return full


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes. Of some dtypes torch 2.11 writes tensors that it cannot read again."""
    return tensor.contiguous().view(torch.uint8)


def _bind(small: StackedTensor, full: torch.Tensor, undo: Undo) -> None:
    before = small.tensor.data
    undo.add(lambda: small.bind(lambda: before))
    small.bind(lambda: full.to(before.device, copy=True))
