"""Who says how many experts a layer has: its gate, or else the experts themselves."""

import re
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from torch import nn

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.model import StackedTensor
from modelexpress.dwdp.stacks import Stack, declared_experts, modules_within, own_tensors


class Trust(IntEnum):
    """How far a number of experts is believed; where two differ, the more trusted one counts."""

    BESIDE = 1
    """A child of the layer has a weight with so many rows."""
    DECLARED = 2
    """The experts say so, in a field such as `num_experts`."""
    NAMED = 3
    """A module that is called gate or router has a weight with so many rows."""


class Count(NamedTuple):
    """A number of experts, and who says it.

    Args:
        num_experts: E.
        trust: How far it is believed.
        gate: Name of the gate within the layer; None: there is none.
    """

    num_experts: int
    trust: Trust
    gate: str | None


def all_experts(config: DwdpConfig) -> int:
    """Return the one number of experts of layers that a group can share."""
    return (config.dwdp_size - 1) * config.num_prefetch_experts + config.num_experts_per_worker


def counts(block: nn.Module, stacks: Sequence[Stack], alone: bool) -> list[Count]:
    """Return the numbers of experts that a layer may have by what is in it, the most trusted ones first.

    Args:
        block: The layer.
        stacks: Its modules with stacked weights.
        alone: Whether nothing is around it. Else the experts themselves are not the layer: what calls them is.
    """
    found = list(_gates(block, stacks))
    if alone or not any(stack.module is block for stack in stacks):
        declared = {declared_experts(stack) for stack in stacks} - {None}
        found += [Count(number, Trust.DECLARED, None) for number in declared if number is not None]
    return sorted(found, key=lambda count: -count.trust)


def _gates(block: nn.Module, stacks: Sequence[Stack]) -> Iterator[Count]:
    found = list(_weights(block, stacks))
    for position, (count, _) in enumerate(found):
        top = str(count.gate).partition(".")[0]
        behind = (columns for other, columns in found[position + 1 :] if str(other.gate).partition(".")[0] == top)
        # What another weight of the same gate reads is within the gate, and no number of experts.
        if count.num_experts not in behind:
            yield count


def _weights(block: nn.Module, stacks: Sequence[Stack]) -> Iterator[tuple[Count, int]]:
    """Return what may be weights of gates, and their columns."""
    experts = {id(stack.module) for stack in stacks}
    for name, module in modules_within(block):
        if id(module) in experts:
            continue
        for attribute, tensor in own_tensors(module):
            if tensor.dim() != 2 or tensor.shape[0] < 2:
                continue
            rows, columns = tensor.shape
            if (attribute == "weight" and _names_gate(name)) or _names_gate(attribute):
                yield Count(rows, Trust.NAMED, name), columns
            elif attribute == "weight" and name and "." not in name:
                yield Count(rows, Trust.BESIDE, name), columns


def _names_gate(name: str) -> bool:
    """Return whether a name is that of a gate; those of a gated product (gate_proj, gate_up) are not."""
    for part in name.lower().split("."):
        words = set(re.split("_|(?<=[a-z])(?=[0-9])", part))
        if words & {"gate", "router", "gating", "wg"} and not words & {"proj", "up", "expert", "experts", "shared"}:
            return True
    return False


def router_tensors(block: nn.Module, gates: Sequence[str], stacks: Sequence[Stack], rows: int) -> list[StackedTensor]:
    """Return what a gate has beside its weight for each expert, such as a correction bias.

    Args:
        block: The layer, which may have it itself.
        gates: Their names within the layer; what is beside them, or in them, counts.
        stacks: The layer's modules with stacked weights, which do not.
        rows: Experts that such a tensor has.
    """
    experts, tops = {id(stack.module) for stack in stacks}, {gate.partition(".")[0] for gate in gates}
    return [
        StackedTensor(f"{name}.{attribute}".lstrip("."), module, attribute)
        for name, module in modules_within(block)
        if id(module) not in experts and (not name or name.partition(".")[0] in tops)
        for attribute, tensor in own_tensors(module)
        if tensor.dim() and tensor.shape[0] == rows == tensor.numel() and not _of_linear(module, attribute)
    ]


def _of_linear(module: nn.Module, attribute: str) -> bool:
    """Return whether a tensor is the bias of a map that has as many rows: one of its own, and not of experts."""
    own = dict(own_tensors(module))
    return attribute == "bias" and "weight" in own and own["weight"].shape[0] == own["bias"].shape[0]
