"""Small models with stacked experts, of the shapes that are hard for whoever shares them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig


@dataclass(frozen=True)
class Shape:
    """One layer of a toy model.

    Args:
        experts: How many; 0 for a dense layer.
        inner: Width within an expert.
        chunks: How often the layer calls its experts.
        shared: Whether an expert beside the stack sees every token.
    """

    experts: int
    inner: int
    chunks: int = 1
    shared: bool = False


class Experts(nn.Module):
    """Two stacked weights and a stacked bias."""

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, inner, hidden) / hidden**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, inner) / inner**0.5)
        self.bias = nn.Parameter(torch.randn(experts, hidden))

    def forward(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum, each weighted by its scores [tokens, experts]."""
        out = torch.zeros_like(tokens)
        for expert in range(scores.shape[1]):
            inner = torch.relu(tokens @ self.up[expert].T)
            out += (inner @ self.down[expert].T + self.bias[expert]) * scores[:, expert, None]
        return out


class QuantizedExperts(nn.Module):
    """A stacked weight of 8-bit floats, a scale for each expert, and scales for each block."""

    def __init__(self, experts: int, hidden: int, block: int = 4) -> None:
        super().__init__()
        weight = torch.randn(experts, hidden, hidden).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.rand(experts) + 0.5)
        self.register_buffer("zero", torch.randn(experts, 1))
        self.block = block
        self.block_scale = nn.Parameter(torch.rand(experts, hidden // block, hidden // block) + 0.5)

    def forward(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum, each weighted by its scores [tokens, experts]."""
        out = torch.zeros_like(tokens)
        for expert in range(scores.shape[1]):
            blocks = self.block_scale[expert].repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
            weight = self.weight[expert].float() * blocks * self.scale[expert] / tokens.shape[1]
            out += (tokens @ weight.T + self.get_buffer("zero")[expert]) * scores[:, expert, None]
        return out


class Block(nn.Module):
    """A layer with experts: a gate, the experts, and perhaps one that all tokens see."""

    def __init__(self, hidden: int, shape: Shape, experts: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, shape.experts, bias=False)
        self.experts = experts
        self.shared = nn.Linear(hidden, hidden) if shape.shared else None
        self.chunks = shape.chunks

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' answer for each token [tokens, hidden]."""
        chosen = [
            self.experts(part, torch.softmax(self.gate(part), -1)) for part in tokens.chunk(self.chunks) if len(part)
        ]
        out = torch.cat(chosen)
        return out if self.shared is None else out + self.shared(tokens)


class Toy(nn.Module):
    """Layers one after the other, each added to what it reads.

    Args:
        hidden: Width of a token.
        shapes: Of the layers.
        experts: Makes a layer's experts.
    """

    def __init__(
        self, hidden: int, shapes: Sequence[Shape], experts: Callable[[int, int, int], nn.Module] = Experts
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(hidden, shape, experts(shape.experts, hidden, shape.inner))
            if shape.experts
            else nn.Sequential(nn.Linear(hidden, shape.inner), nn.ReLU(), nn.Linear(shape.inner, hidden))
            for shape in shapes
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the last layer's tokens [tokens, hidden]."""
        for layer in self.layers:
            tokens = nn.functional.layer_norm(tokens + layer(tokens), tokens.shape[1:])
        return tokens


def quantized(hidden: int, experts: int, layers: int) -> Toy:
    """Return a toy model of 8-bit floats."""
    return Toy(hidden, [Shape(experts, hidden)] * layers, lambda count, width, _: QuantizedExperts(count, width))


def cut(model: nn.Module, config: DwdpConfig, rank: int, total: int) -> None:
    """Leave a model with the experts that a rank stores, as if only they had been loaded.

    Args:
        model: Its tensors within a module named `experts` are stacked.
        config: Says which experts those are.
        rank: In its group.
        total: Experts of each layer.
    """
    start = rank * config.num_prefetch_experts
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "experts":
            for tensor in (*module.parameters(), *module.buffers()):
                assert tensor.shape[0] == total
                tensor.data = tensor.data[start : start + config.num_experts_per_worker].clone()


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors have the same shape and the same bits."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return torch.equal(*(one.detach().contiguous().view(torch.uint8) for one in (first, second)))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers."""
    both = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in both}


def differing(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of parameters and buffers that are not, to the bit, what they were."""
    both = dict((*model.named_parameters(), *model.named_buffers()))
    return [name for name in before.keys() | both.keys() if not same_bits(both[name], before[name])]
