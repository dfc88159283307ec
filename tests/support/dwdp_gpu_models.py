"""Small mixture-of-experts models, whose grouped products are the device's; the same on every rank, by their seed."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

EXPERTS = 16
HIDDEN = 512
TOP_K = 2
INTERMEDIATE = (384, 520, 256)
"""Layers of different sizes; none of them has experts that end with a page, and one keeps a small weight whole."""

LARGE = (3072, 3072, 3072)
"""Layers that are large beside the pages of a slot."""

Pause = Callable[[], object]


def no_pause() -> None:
    """Let experts be computed at once."""


class ToyExperts(nn.Module):
    """Gated experts, stacked; `scale` is a small tensor with a row for each, as quantised models have it."""

    gate_up: nn.Parameter
    down: nn.Parameter

    def __init__(self, intermediate: int, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = {"gate_up": (EXPERTS, 2 * intermediate, HIDDEN), "down": (EXPERTS, HIDDEN, intermediate)}
        for name, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.float32) * shape[-1] ** -0.5
            setattr(self, name, nn.Parameter(values.to(dtype), requires_grad=False))
        self.scale = nn.Parameter(torch.rand(EXPERTS, 1, 1) + 0.5, requires_grad=False)
        self.pause: Pause = no_pause

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts make of it; tokens × HIDDEN."""
        self.pause()
        order = chosen.flatten().argsort(stable=True)
        counts = functional.one_hot(chosen.flatten(), EXPERTS).sum(0)
        ends = counts.cumsum(0).to(torch.int32)
        rows = hidden[order // TOP_K]
        gate, up = torch._grouped_mm(rows, self._used(self.gate_up), offs=ends).chunk(2, dim=-1)
        found = torch._grouped_mm(functional.silu(gate) * up, self._used(self.down), offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return (found[back].view(*chosen.shape, HIDDEN) * shares.unsqueeze(-1)).sum(1)

    def _used(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight.to(torch.bfloat16) * self.scale.to(torch.bfloat16)).transpose(1, 2)


class PlainExperts(ToyExperts):
    """The same without scales: the product reads the shared memory itself."""

    def _used(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.transpose(1, 2)


class ToyBlock(nn.Module):
    """A gate and its experts, which are called once for each chunk of tokens."""

    def __init__(self, experts: ToyExperts, chunks: int) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = experts
        self._chunks = chunks

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × HIDDEN."""
        shares, chosen = self.gate(hidden).float().softmax(-1).topk(TOP_K)
        parts = zip(*(tensor.chunk(self._chunks) for tensor in (hidden, chosen, shares.to(hidden.dtype))), strict=True)
        return torch.cat([self.experts(*part) for part in parts])


class ToyModel(nn.Module):
    """Layers with experts, and dense layers between them."""

    def __init__(self, dtype: torch.dtype, chunks: int, sizes: Sequence[int]) -> None:
        super().__init__()
        kind = PlainExperts if dtype == torch.bfloat16 else ToyExperts
        self.layers = nn.ModuleList()
        for intermediate in sizes:
            self.layers += [ToyBlock(kind(intermediate, dtype), chunks), nn.Linear(HIDDEN, HIDDEN)]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states, tokens × HIDDEN."""
        for layer in self.layers:
            hidden = hidden + layer(functional.rms_norm(hidden, (HIDDEN,)))
        return hidden


def toy(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    chunks: int = 1,
    sizes: Sequence[int] = INTERMEDIATE,
) -> nn.Module:
    """Return the toy: experts of a dtype, everything else of bfloat16."""
    torch.manual_seed(7)
    model = ToyModel(dtype, chunks, sizes)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return model.to(device).requires_grad_(False)


def qwen3(device: torch.device) -> nn.Module:
    """Return a small Qwen3-MoE of transformers, with random weights; one of its layers is dense."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        moe_intermediate_size=INTERMEDIATE[0],
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        mlp_only_layers=[2],
    )
    torch.manual_seed(7)
    model: nn.Module = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    return model.to(device).eval().requires_grad_(False)


def built(kind: str, device: torch.device, chunks: int = 1) -> nn.Module:
    """Return a model by name: toy, fp8 or qwen3."""
    if kind == "qwen3":
        return qwen3(device)
    return toy(device, torch.float8_e4m3fn if kind == "fp8" else torch.bfloat16, chunks)


def fed(kind: str, device: torch.device, seed: int) -> torch.Tensor:
    """Return what a model is called with: token numbers, or hidden states."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "qwen3":
        return torch.randint(0, 256, (2, 64), generator=generator).to(device)
    return torch.randn(192, HIDDEN, generator=generator).to(device, torch.bfloat16)


def called(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Return what a model makes of an input."""
    found = model(given)
    return found if isinstance(found, torch.Tensor) else found.logits


def cut(model: nn.Module, held: range) -> None:
    """Leave only a rank's experts in a model, as if no others had been loaded."""
    for module in model.modules():
        if any(parameter.dim() >= 3 for parameter in module.parameters(recurse=False)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data[held.start : held.stop].clone()


def pausing(model: nn.Module, pause: Pause) -> None:
    """Let the toy's experts begin with something that takes time."""
    for module in model.modules():
        if isinstance(module, ToyExperts):
            module.pause = pause
