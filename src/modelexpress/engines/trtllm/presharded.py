"""Presharded weights: each rank has exactly its own shard, so linear layers must not cut a slice out of it again."""

import torch

RUNTIME_ALIASES = frozenset({"next_attn", "next_layer_layernorm"})
"""Attributes by which the engine's layers refer to those of the layer after them: no places of their own."""

_FLAG = "_weights_presharded"
"""What the engine's linear layers look at: while it is set, they load as if the tensor parallel size were 1."""
_CUT = "tp_size"
"""What modules have whose weights are cut over ranks."""


def mark_presharded(model: torch.nn.Module, presharded: bool) -> None:
    """Tell the layers of a model whether what it holds, or is about to be given, is this rank's shard already.

    Where a peer delivered nothing this must be taken back before the engine loads a checkpoint, whose tensors are
    whole: layers would take them for shards.
    """
    for module in model.modules():
        if hasattr(module, _CUT):
            setattr(module, _FLAG, presharded)
