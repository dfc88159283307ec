"""Leaving a model of transformers with some experts only, before it is loaded: it never has room for the others."""

from collections.abc import Mapping
from typing import Any

import torch

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.find import find_layers
from modelexpress.errors import ConfigurationError
from modelexpress.weights.chosen_rows import RowRanges

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of a configuration, of which a model has one."""

_GRANULARITY = 2 << 20
"""Of a GPU's memory, in bytes."""


def keep_rows(model: Any, rows: range | RowRanges) -> RowRanges:
    """Cut stacked tensors to some rows, and return which these are, by name, as `load` wants them.

    Args:
        model: Built whole, its parameters on the meta device.
        rows: Experts that stay, of every layer; or rows that stay, by names of tensors.

    Raises:
        ConfigurationError: The model has no such experts, or no such tensors or rows.
        ExpertsUnsupported: Its experts are not stacked.
    """
    chosen = rows if isinstance(rows, Mapping) else _of_experts(model, rows)
    tensors = _tensors(model)
    for name, (start, stop) in chosen.items():
        tensor = tensors.get(name)
        if tensor is None or not tensor.dim() or not 0 <= start < stop <= tensor.shape[0]:
            has = "which it has not" if tensor is None else f"which has the shape {list(tensor.shape)}"
            raise ConfigurationError(f"rows {start}:{stop} shall be left in the model of '{name}', {has}")
        tensor.data = tensor.data[start:stop].clone()
    return chosen


def _of_experts(model: Any, experts: range) -> RowRanges:
    config = model.config.get_text_config()
    count = next((found for field in _EXPERTS if (found := getattr(config, field, None))), 0)
    if experts.step != 1 or not 0 <= experts.start < experts.stop <= count:
        raise ConfigurationError(
            f"{type(model).__name__} has {count} experts in a layer: rows={experts} are not some of them, one after "
            "the other"
        )
    # What layers with experts are does not depend on the number of ranks.
    layers = find_layers(model, DwdpConfig.spreading(count, 2), _GRANULARITY)
    stacked = {id(one.tensor) for layer in layers for one in (*layer.weights, *layer.small)}
    return {name: (experts.start, experts.stop) for name, tensor in _tensors(model).items() if id(tensor) in stacked}


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))
