"""Small tensors with a row for each expert (biases, scales, a gate's correction): every rank keeps them whole.

Where a layer was loaded in part, a tensor with as many rows as a rank stores is taken for such a one. The ranks' values
tell where that is mistaken: what all of them have alike, though its rows differ, is no part of anything.
"""

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
        ExpertsUnsupported: Two ranks that hold the same expert have different values for it, or all have the same.
        RankLost: A rank ended, or did not answer within the deadline.
    """
    for layer, partition in zip(layers, partitions, strict=True):
        cut = [small for small in layer.small if small.tensor.shape[0] == partition.per_rank != partition.num_experts]
        gathered = ranks.gather([_bytes(small.tensor.data.cpu()) for small in cut])
        for small, *parts in zip(cut, *gathered, strict=True):
            rows = [part.view(small.tensor.dtype) for part in cast(list[torch.Tensor], parts)]
            name = f"{layer.name}: {small.name}"
            if _is_alike(rows, _widths(layer)):
                raise ExpertsUnsupported(
                    f"{name} has {partition.per_rank} rows, as many as a rank stores experts, and they are the same on "
                    "all ranks: either it has none for each expert, then choose another num_experts_per_worker or load "
                    "all experts, or all ranks have loaded the same experts"
                )
            full = _joined(name, rows, partition)
            _bind(small, full, undo)


def _widths(layer: ExpertLayer) -> set[int]:
    """Return the sizes of a layer's experts: a tensor with so many rows may have them for features of a token."""
    return {size for weight in layer.weights for size in weight.tensor.shape[1:]}


def _is_alike(rows: Sequence[torch.Tensor], widths: set[int]) -> bool:
    """Return whether what the ranks have is one and the same tensor.

    One whose rows are all the same, such as zeros, may be any part of a larger one.
    """
    first = rows[0]
    if not all(_same(first, other) for other in rows[1:]):
        return False
    return len(first) in widths or not _same(first, first[:1].expand_as(first))


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
