"""The modules within a layer that hold stacked weights, and for how many experts they hold them.

A stacked weight has three dimensions or more, and a row for each expert: for all of them, or for those that this rank
stores. One layer has one such number, and its large weights say which. Names help where shapes do not suffice.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modelexpress.dwdp.layout import is_small
from modelexpress.dwdp.model import StackedTensor

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Their weights have three dimensions or more, and rows that are channels."""

_FIELDS = ("num_experts", "n_routed_experts", "global_num_experts")
"""In which experts say how many they are. `num_local_experts` is all of them, or those of a rank."""


@dataclass(frozen=True)
class Stack:
    """A module that has stacked weights itself.

    Args:
        name: Within the layer.
        module: Has them.
        experts: Whether its name, its class or what it says of itself tells that its rows are experts.
    """

    name: str
    module: nn.Module
    experts: bool

    def tensors(self) -> list[StackedTensor]:
        """Return all its own tensors, stacked or not."""
        return [
            StackedTensor(f"{self.name}.{attribute}".lstrip("."), self.module, attribute)
            for attribute, _ in own_tensors(self.module)
        ]

    def weights(self) -> list[StackedTensor]:
        """Return its own tensors that are stacked."""
        return [one for one in self.tensors() if is_stacked(one.tensor)]


def own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters and buffers of a module itself."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def is_stacked(tensor: torch.Tensor) -> bool:
    """Return whether a tensor may have a matrix, or more, for each expert."""
    return tensor.dim() >= 3 and tensor.shape[0] > 1


def has_stacked(module: nn.Module) -> bool:
    """Return whether a module itself has weights that may be stacked."""
    return not isinstance(module, _CONVOLUTIONS) and any(is_stacked(tensor) for _, tensor in own_tensors(module))


def modules_within(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return a module and those within it, as `named_modules` does, but not those of lists: these are other layers."""
    lists = tuple(
        f"{name}."
        for name, module in block.named_modules()
        if name and isinstance(module, nn.ModuleList) and not names_experts(name.rpartition(".")[2])
    )
    for name, module in block.named_modules():
        if not name.startswith(lists):
            yield name, module


def stacks_within(block: nn.Module, name: str) -> list[Stack]:
    """Return the modules of a layer that have stacked weights; those that say so, where some do.

    Args:
        block: The layer.
        name: Its own, in the model.
    """
    above = name.rpartition(".")[2]
    found = [
        Stack(within, module, says_experts(f"{above}.{within}", module))
        for within, module in modules_within(block)
        if has_stacked(module)
    ]
    # Where nothing is called so, experts are at least parameters: what is made from a configuration is not.
    return [stack for stack in found if stack.experts] or [
        stack for stack in found if any(isinstance(one.tensor, nn.Parameter) for one in stack.weights())
    ]


def names_experts(name: str) -> bool:
    """Return whether a name is one of experts among which a gate chooses."""
    return any("expert" in part and "shared" not in part for part in name.lower().split("."))


def declared_experts(stack: Stack) -> int | None:
    """Return the number of experts that a module with stacked weights says it has, or that its configuration says."""
    configuration = getattr(stack.module, "config", None) if stack.experts else None
    return _count(stack.module, _FIELDS) or _count(configuration, (*_FIELDS, "num_local_experts"))


def large_weights(stacks: Sequence[Stack], num_experts: int, granularity: int) -> list[StackedTensor]:
    """Return the stacked weights that are too large to be kept whole; all of them where none is.

    Args:
        stacks: Of a layer.
        num_experts: Of the layer, E.
        granularity: Of the memory, in bytes.
    """
    weights = [weight for stack in stacks for weight in stack.weights()]
    return [one for one in weights if not is_small(full_bytes(one.tensor, num_experts), granularity)] or weights


def full_bytes(tensor: torch.Tensor, num_experts: int) -> int:
    """Return the size that a tensor has, or would have, with all experts."""
    return tensor.nbytes // max(tensor.shape[0], 1) * num_experts


def says_experts(name: str, module: nn.Module) -> bool:
    """Return whether a module with stacked weights tells that their rows are experts among which a gate chooses.

    Args:
        name: Of the module, and of what it is in.
        module: May tell by its class, its parameters' names, or the number of experts that it has.
    """
    if "shared" in name:
        return False
    return (
        names_experts(name)
        or "moe" in re.split("[._]", name.lower())
        or any(names_experts(attribute) for attribute, _ in own_tensors(module))
        or "Expert" in type(module).__name__
        or _count(module, _FIELDS) is not None
    )


def _count(source: object, fields: Sequence[str]) -> int | None:
    for field in fields:
        count = getattr(source, field, None)
        if type(count) is int and count > 1:
            return count
    return None
