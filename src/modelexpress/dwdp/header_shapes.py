"""Shapes of experts from the tensors that a checkpoint lists: stacked ones as they are, others as they will be stacked.

A checkpoint names the experts of a layer `….layers.3.….experts.NAME` where they are stacked, and
`….layers.3.….experts.17.NAME` where each has tensors of its own. Models stack the latter when they are loaded, and join
the projections of gate and input, which are used together.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from modelexpress.dwdp.shapes import ExpertTensor, LayerShape
from modelexpress.errors import ConfigurationError

_NAME = re.compile(r"(?:^|.*\.)layers\.(?P<layer>\d+)\.(?:.*\.)?experts\.(?:(?P<expert>\d+)\.)?(?P<tensor>.+)$")
_JOINED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}


class Stored(NamedTuple):
    """A tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    nbytes: int


def layers_of_tensors(tensors: Iterable[Stored], num_experts: int, depth: int) -> tuple[LayerShape, ...]:
    """Return the layers with experts that a checkpoint holds; none where it names them in another way.

    Args:
        tensors: All of them, or those of experts.
        num_experts: As many as the gate knows.
        depth: Layers of a forward; what comes behind, for drafts, is left out.

    Raises:
        ConfigurationError: A tensor has another number of experts, or experts of a layer differ in size.
    """
    layers: dict[int, dict[str, dict[int | None, int]]] = {}
    for name, shape, nbytes in tensors:
        match = _NAME.match(name)
        if match is None or int(match["layer"]) >= depth:
            continue
        expert = int(match["expert"]) if match["expert"] else None
        if expert is None and (not shape or shape[0] != num_experts):
            raise ConfigurationError(f"{name} has the shape {shape}, but config.json says {num_experts} experts")
        kept = layers.setdefault(int(match["layer"]), {}).setdefault(match["tensor"], {})
        kept[expert] = nbytes if expert is not None else nbytes // num_experts
    return tuple(
        LayerShape(number, num_experts, _stacked(f"layer {number}", layers[number], num_experts))
        for number in sorted(layers)
    )


def _stacked(where: str, tensors: dict[str, dict[int | None, int]], num_experts: int) -> tuple[ExpertTensor, ...]:
    joined: dict[str, int] = {}
    for name, parts in tensors.items():
        if None not in parts and set(parts) != set(range(num_experts)):
            raise ConfigurationError(
                f"{where}: {name} is there for {len(parts)} of {num_experts} experts: complete the checkpoint"
            )
        if len(set(parts.values())) > 1:
            raise ConfigurationError(f"{where}: {name} has experts of different sizes, which cannot be stacked")
        first, dot, rest = name.partition(".")
        stacked = name if None in parts else f"{_JOINED.get(first, first)}{dot}{rest}"
        joined[stacked] = joined.get(stacked, 0) + next(iter(parts.values()))
    return tuple(ExpertTensor(name, nbytes) for name, nbytes in joined.items())
