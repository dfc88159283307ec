"""Finding the experts of a model: any module with stacked expert weights, by shape and by its gate.

A layer is the smallest module that has a gate (a child with one row of weights for each expert) and, outside of it,
tensors with one row for each expert, or for each that this rank stores. This covers the mixture-of-experts models of
transformers 5, whose experts are such a module, and those of engines that stack their experts.
"""

from collections.abc import Iterator

import torch
from torch import nn

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.layout import is_small
from modelexpress.dwdp.model import ExpertLayer, StackedTensor
from modelexpress.errors import ExpertsUnsupported


def find_layers(model: nn.Module, config: DwdpConfig, granularity: int) -> list[ExpertLayer]:
    """Return the layers with experts, in the order of the model's modules.

    Args:
        model: Loaded with all experts, or with those that a rank stores.
        config: Says how many those are.
        granularity: Of the memory, in bytes.

    Raises:
        ExpertsUnsupported: There are none, or they are kept in another way.
    """
    # A module may be in several places of a model, and is used in each of them then.
    found = list({id(layer.block): layer for layer in _find(model, "", config, granularity)}.values())
    if not found:
        raise ExpertsUnsupported(
            f"{type(model).__name__} has no layer with a gate and stacked experts ([experts, …] in one parameter) that "
            f"fit num_experts_per_worker={config.num_experts_per_worker}{_reason(model)}"
        )
    # What has another number of experts, or only looks as if it had some, stays as it is where it was loaded whole.
    return [layer for layer in found if layer.num_experts == _reach(config) or not _whole(layer)] or found


def find_layer(module: nn.Module, name: str, config: DwdpConfig, granularity: int) -> ExpertLayer:
    """Return the one layer with experts within a module.

    Raises:
        ExpertsUnsupported: There is none, or more than one.
    """
    found = list(_find(module, name, config, granularity))
    if len(found) != 1:
        raise ExpertsUnsupported(
            f"{name or type(module).__name__} has {len(found)} layers with a gate and stacked experts, not one"
            f"{_reason(module)}"
        )
    return found[0]


def _find(module: nn.Module, name: str, config: DwdpConfig, granularity: int) -> Iterator[ExpertLayer]:
    inner = [
        layer
        for child_name, child in module.named_children()
        for layer in _find(child, f"{name}.{child_name}" if name else child_name, config, granularity)
    ]
    if inner:
        yield from inner
        return
    # What only looks like a gate must not be taken for it where another one fits the configuration.
    for gate, num_experts in sorted(_gates(module), key=lambda found: found[1] != _reach(config)):
        stacked = list(_stacked(module, gate, {num_experts, config.num_experts_per_worker}))
        if any(one.tensor.dim() >= 3 for one in stacked):
            yield _layer(module, name, num_experts, stacked, granularity)
            return


def _gates(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Return children that may be the gate, with the number of experts that each would know."""
    for child in module.children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.shape[0] > 1:
            yield child, weight.shape[0]


def _stacked(block: nn.Module, gate: nn.Module, rows: set[int]) -> Iterator[StackedTensor]:
    """Return the tensors of the modules with stacked experts, which have one of these numbers of rows."""
    for prefix, module in block.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if module is gate or not any(tensor.dim() >= 3 and tensor.shape[0] in rows for _, tensor in own):
            continue
        for attribute, tensor in own:
            if tensor.dim() and tensor.shape[0] in rows:
                yield StackedTensor(f"{prefix}.{attribute}".lstrip("."), module, attribute)


def _layer(
    block: nn.Module, name: str, num_experts: int, stacked: list[StackedTensor], granularity: int
) -> ExpertLayer:
    weights = [one for one in stacked if not is_small(_full_bytes(one.tensor, num_experts), granularity)]
    small = [one for one in stacked if one not in weights]
    users = list({id(one.module): one.module for one in stacked}.values())
    return ExpertLayer(name or type(block).__name__, num_experts, block, users, weights, small)


def _reach(config: DwdpConfig) -> int:
    return (config.dwdp_size - 1) * config.num_prefetch_experts + config.num_experts_per_worker


def _whole(layer: ExpertLayer) -> bool:
    return all(one.tensor.shape[0] == layer.num_experts for one in (*layer.weights, *layer.small))


def _full_bytes(tensor: torch.Tensor, num_experts: int) -> int:
    return tensor.nbytes // max(tensor.shape[0], 1) * num_experts


def _reason(model: nn.Module) -> str:
    """Say what the model has instead, where it is a kind that is known."""
    for name, module in model.named_modules():
        for child_name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and "expert" in child_name:
                return f": {name}.{child_name} keeps {len(child)} experts apart, in modules of their own: stack them"
            if "expert" in child_name and any(tensor.dim() >= 3 for tensor in child.parameters()):
                shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in child.named_parameters())
                return f": {name}.{child_name} holds {shapes}"
    return ""


def check_model(model: nn.Module) -> None:
    """Refuse what moves experts behind our back.

    Raises:
        ExpertsUnsupported: The model balances its experts' load by moving them.
    """
    for name, module in model.named_modules():
        if getattr(module, "enable_eplb", False) or getattr(module, "layer_load_balancer", None) is not None:
            raise ExpertsUnsupported(
                f"{name or type(model).__name__} balances load by moving experts between ranks: switch that off, all "
                "ranks see all experts"
            )


def numbered_layer(model: nn.Module, number: int) -> nn.Module:
    """Return a layer of a model by its number, in the first list called `layers` that has stacked weights.

    Raises:
        ExpertsUnsupported: There is no such layer.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.rpartition(".")[2] != "layers":
            continue
        if 0 <= number < len(module) and any(tensor.dim() >= 3 for tensor in module.parameters()):
            return module[number]
    raise ExpertsUnsupported(f"{type(model).__name__} has no layer {number} with experts: pass its module to add_layer")
