"""What is shared of a model: its layers with experts, their stacked weights, and the small tensors beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from modelexpress.errors import ExpertsUnsupported


@dataclass(frozen=True)
class StackedTensor:
    """A parameter or buffer whose rows are experts.

    Args:
        name: Within the layer, for messages; the same on all ranks.
        module: Has it as an attribute.
        attribute: Its name there.
    """

    name: str
    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor at present."""
        found: torch.Tensor = getattr(self.module, self.attribute)
        return found

    def bind(self, make: Callable[[], torch.Tensor]) -> None:
        """Let the parameter, which stays the same object, show other memory.

        Args:
            make: Returns a tensor over it. It is called in inference mode if the parameter was made so, and only then:
                whatever the caller is within, the parameter is of as much use afterwards as it was before.
        """
        bind(self.tensor, make)


@dataclass(frozen=True)
class ExpertLayer:
    """A layer with experts.

    Args:
        name: In the model, for messages.
        num_experts: As many as its gate knows.
        block: The module whose forward uses the experts last; within it the experts may be called in several chunks.
        users: Modules that have the experts.
        weights: What is fetched for each use.
        small: What every rank keeps whole.
    """

    name: str
    num_experts: int
    block: nn.Module
    users: Sequence[nn.Module]
    weights: Sequence[StackedTensor]
    small: Sequence[StackedTensor]


def bind(parameter: torch.Tensor, make: Callable[[], torch.Tensor]) -> None:
    """Let a parameter show other memory; see `StackedTensor.bind`."""
    with torch.inference_mode(parameter.is_inference()):
        parameter.data = make()


class WeightSpec(NamedTuple):
    """What all ranks must agree on about one weight: everything but how many experts were loaded."""

    layer: str
    name: str
    num_experts: int
    expert_shape: tuple[int, ...]
    expert_stride: tuple[int, ...]
    dtype: str
    expert_bytes: int


def spec_of(layer: ExpertLayer, weight: StackedTensor) -> WeightSpec:
    """Describe a stacked weight.

    Raises:
        ExpertsUnsupported: Its experts do not lie one behind the other.
    """
    tensor = weight.tensor
    if type(tensor.data) is not torch.Tensor:
        raise ExpertsUnsupported(
            f"{layer.name}: {weight.name} is a {type(tensor.data).__name__}, not a plain tensor: inside a group the "
            "tensor- and expert-parallel sizes of the experts are 1"
        )
    if tensor.device.type == "meta":
        raise ExpertsUnsupported(f"{layer.name}: {weight.name} has no memory yet: load this rank's experts first")
    expert = tensor.data[0]
    dense = expert.numel() == 1 + sum(
        (size - 1) * step for size, step in zip(expert.shape, expert.stride(), strict=True)
    )
    if not dense or (tensor.shape[0] > 1 and tensor.stride(0) != expert.numel()):
        raise ExpertsUnsupported(
            f"{layer.name}: the experts of {weight.name} do not lie one behind the other (shape "
            f"{tuple(tensor.shape)}, stride {tensor.stride()}): make it contiguous"
        )
    return WeightSpec(
        layer.name,
        weight.name,
        layer.num_experts,
        tuple(expert.shape),
        expert.stride(),
        str(tensor.dtype),
        expert.numel() * tensor.element_size(),
    )
