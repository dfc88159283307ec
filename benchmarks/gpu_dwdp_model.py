"""A model of the shapes of Qwen3-30B-A3B: attention, a gate and stacked experts in each layer, random weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu_dwdp_kernels import by_expert, joined, products


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; those of attention are of one head where it says so."""

    layers: int
    experts: int = 128
    hidden: int = 2048
    intermediate: int = 768
    top_k: int = 8
    heads: int = 32
    kv_heads: int = 4
    head: int = 128
    sequence: int = 4096

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer in bfloat16."""
        return 2 * 3 * self.hidden * self.intermediate


REAL = Shape(48)
TINY = Shape(4, 16, 64, 32, 2, 4, 2, 16, 32)


class Experts(nn.Module):
    """Stacked experts of one layer, all of them or a rank's."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(gate_up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts make of it, tokens × hidden."""
        order, ends = by_expert(chosen.flatten(), self.gate_up.shape[0])
        found = products(hidden.index_select(0, order // chosen.shape[1]), self.gate_up, self.down, ends)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return joined(found, places.view(chosen.shape), shares)


class Block(nn.Module):
    """A gate and its experts. What the gate finds is added to a table, which decides: routing is the benchmark's."""

    def __init__(self, gate: nn.Linear, experts: nn.Module, top_k: int) -> None:
        super().__init__()
        self.gate, self.experts, self._top_k = gate, experts, top_k
        self.table = torch.empty(0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × hidden."""
        logits = torch.add(self.table, self.gate(hidden).float(), alpha=1e-3)
        shares, chosen = logits.softmax(-1).topk(self._top_k, sorted=False)
        found: torch.Tensor = self.experts(hidden, chosen, shares / shares.sum(-1, keepdim=True))
        return found


class Attention(nn.Module):
    """Causal attention with grouped keys and values, without positions."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__()
        self._shape = shape
        width = (shape.heads + 2 * shape.kv_heads) * shape.head
        self.inward = _linear(shape.hidden, width, device)
        self.outward = _linear(shape.heads * shape.head, shape.hidden, device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × hidden: sequences of one length, one behind the other."""
        shape, tokens = self._shape, hidden.shape[0]
        found = self.inward(hidden).view(-1, min(shape.sequence, tokens), shape.heads + 2 * shape.kv_heads, shape.head)
        asked, keys, values = found.transpose(1, 2).split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        seen = functional.scaled_dot_product_attention(asked, keys, values, is_causal=True, enable_gqa=True)
        result: torch.Tensor = self.outward(seen.transpose(1, 2).reshape(tokens, -1))
        return result


class Layer(nn.Module):
    """Attention and experts, each behind a norm and added to what came in."""

    def __init__(self, attention: Attention, block: Block) -> None:
        super().__init__()
        self.attention, self.block = attention, block

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × hidden."""
        width = (hidden.shape[-1],)
        seen: torch.Tensor = self.attention(functional.rms_norm(hidden, width))
        hidden = hidden + seen
        found: torch.Tensor = self.block(functional.rms_norm(hidden, width))
        return hidden + found


class Model(nn.Module):
    """Layers, one behind the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × hidden."""
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def route(self, tables: Sequence[torch.Tensor]) -> None:
        """Let tables decide which tokens go where, in turn from layer to layer."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            layer.block.table = tables[number % len(tables)]


Trunk = Sequence[tuple[Attention, nn.Linear]]


def trunk(shape: Shape, device: torch.device) -> Trunk:
    """Return attention and gate of each layer: what the variants of a model have in common, and every rank has."""
    torch.manual_seed(1)
    return [(Attention(shape, device), _linear(shape.hidden, shape.experts, device)) for _ in range(shape.layers)]


def model(shape: Shape, common: Trunk, held: range) -> Model:
    """Return a model with the experts that a rank holds; an expert is the same on all ranks."""
    layers = []
    for number, (attention, gate) in enumerate(common):
        device = gate.weight.device
        torch.manual_seed(1000 + number)
        found = []
        for rows, columns in ((2 * shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)):
            full = torch.empty(shape.experts, rows, columns, dtype=torch.bfloat16, device=device)
            full.normal_(0, 1 / math.sqrt(columns))
            found.append(full if len(held) == shape.experts else full[held.start : held.stop].clone())
        layers.append(Layer(attention, Block(gate, Experts(*found), shape.top_k)))
    return Model(layers)


def _linear(inner: int, outer: int, device: torch.device) -> nn.Linear:
    layer = nn.Linear(inner, outer, bias=False, dtype=torch.bfloat16, device=device)
    nn.init.normal_(layer.weight, 0, 1 / math.sqrt(inner))
    return layer.requires_grad_(False)
