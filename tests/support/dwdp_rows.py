"""Cases of tensors that only look as if they had a row for each expert, of those that do, and of gates further in."""

from collections.abc import Callable

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.errors import ExpertsUnsupported
from tests.support.dwdp_models import Block, Experts, Shape, cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

HIDDEN, INNER = 40, 33


class Mixing(Experts):
    """Experts with some numbers that belong to none of them."""

    def __init__(self, experts: int, numbers: int) -> None:
        super().__init__(experts, HIDDEN, INNER)
        self.register_buffer("mix", torch.linspace(0.5, 2, numbers))

    def forward(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum, scaled."""
        return super().forward(tokens, scores) * self.get_buffer("mix").sum()


class Convolving(Block):
    """A layer that mixes neighbours first, channel by channel."""

    def __init__(self, experts: int) -> None:
        super().__init__(HIDDEN, Shape(experts, INNER), Experts(experts, HIDDEN, INNER))
        self.across = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' answer."""
        return super().forward(self.across(tokens.T).T)


class Corrected(Block):
    """A layer whose gate adds something to the score of each expert."""

    def __init__(self, experts: int, place: str, kind: str) -> None:
        super().__init__(HIDDEN, Shape(experts, INNER), Experts(experts, HIDDEN, INNER))
        self.place = place
        bias, owner = torch.randn(experts), self.gate if place == "gate" else self
        if kind == "buffer":
            owner.register_buffer("e_score_correction_bias", bias)
        else:
            owner.register_parameter("e_score_correction_bias", nn.Parameter(bias))

    @property
    def bias(self) -> torch.Tensor:
        """What is added."""
        return dict((*self.named_parameters(), *self.named_buffers()))[
            "gate.e_score_correction_bias" if self.place == "gate" else "e_score_correction_bias"
        ]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' answer."""
        found: torch.Tensor = self.experts(tokens, torch.softmax(self.gate(tokens) + self.bias, -1))
        return found


class Deep(nn.Module):
    """A gate that is two modules further in."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(HIDDEN, experts))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        found: torch.Tensor = self.layer(tokens)
        return found


class Numbered(Experts):
    """Experts that say how many they are."""

    def __init__(self, experts: int) -> None:
        super().__init__(experts, HIDDEN, INNER)
        self.num_experts = experts


class Declared(nn.Module):
    """Experts that are chosen by a tensor of the layer that is called no gate."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = Numbered(experts)
        self.wanted = nn.Parameter(torch.randn(HIDDEN, experts))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' answer."""
        found: torch.Tensor = self.experts(tokens, torch.softmax(tokens @ self.wanted, -1))
        return found


class SameTwice(Corrected):
    """A layer whose experts have the gate's correction, too."""

    def __init__(self, experts: int) -> None:
        super().__init__(experts, "gate", "parameter")
        self.experts.register_parameter("correction", nn.Parameter(self.bias))
        self.gate.register_parameter("e_score_correction_bias", self.experts.get_parameter("correction"))


def _usual(experts: int, inside: nn.Module | None = None) -> Block:
    return Block(HIDDEN, Shape(experts, INNER), inside or Experts(experts, HIDDEN, INNER))


def _deep(experts: int) -> Block:
    block = _usual(experts)
    block.gate = Deep(experts)  # type: ignore[assignment]
    return block


WHOLE: dict[str, tuple[DwdpConfig, Callable[[], nn.Module]]] = {
    "numbers as many as a rank stores": (DwdpConfig(2, 2, 2), lambda: _usual(4, Mixing(4, 2))),
    "numbers as many as there are": (DwdpConfig(2, 2, 2), lambda: _usual(4, Mixing(4, 4))),
    "features as many as a rank stores": (DwdpConfig(2, HIDDEN, HIDDEN), lambda: Convolving(2 * HIDDEN)),
    "a gate further in": (DwdpConfig(2, 4, 2), lambda: _deep(6)),
    "no gate but a number": (DwdpConfig(2, 4, 2), lambda: Declared(6)),
}

PART: dict[str, Callable[[], nn.Module]] = {
    "a gate further in": lambda: _deep(6),
    "no gate but a number": lambda: Declared(6),
    "a parameter of the gate": lambda: Corrected(6, "gate", "parameter"),
    "a buffer of the gate": lambda: Corrected(6, "gate", "buffer"),
    "a parameter of the gate and of the experts": lambda: SameTwice(6),
    "a parameter of the layer": lambda: Corrected(6, "layer", "parameter"),
    "a buffer of the layer": lambda: Corrected(6, "layer", "buffer"),
}


def whole(rank: Rank) -> None:
    """Share layers that have been loaded with all experts."""
    for config, make in WHOLE.values():
        torch.manual_seed(5)
        compare(rank, config, nn.Sequential(make(), make(), make()), lambda model: None, _answer)


def part(rank: Rank) -> None:
    """Share layers of which each rank has its experts only, and the corrections for them."""
    config = DwdpConfig(2, 4, 2)
    start = rank.number * config.num_prefetch_experts

    def cut_all(model: nn.Module) -> None:
        cut(model, config, rank.number, 6)
        for block in model.children():
            if isinstance(block, Corrected) and len(block.bias) == 6:
                block.bias.data = block.bias.data[start : start + 4].clone()

    for make in PART.values():
        torch.manual_seed(5)
        compare(rank, config, nn.Sequential(make(), make()), cut_all, _answer)


def constant(rank: Rank) -> None:
    """Share layers whose corrections and biases have no values yet: nothing tells them apart."""
    torch.manual_seed(5)
    model = nn.Sequential(Corrected(6, "gate", "buffer"), Corrected(6, "layer", "parameter"))
    with torch.no_grad():
        for block in model.children():
            assert isinstance(block, Corrected)
            block.bias.zero_()
            block.get_parameter("experts.bias").fill_(0.25)

    def cut_all(model: nn.Module) -> None:
        cut(model, DwdpConfig(2, 4, 2), rank.number, 6)
        for block in model.children():
            assert isinstance(block, Corrected)
            block.bias.data = block.bias.data[:4].clone()

    compare(rank, DwdpConfig(2, 4, 2), model, cut_all, _answer)


def alike(rank: Rank) -> list[str]:
    """Try to share what looks like a part on every rank, and is the same on all; return what was told."""
    told = []
    for held, stride, numbers, start in (
        (4, 2, torch.linspace(0.5, 2, 4), rank.number * 2),
        (HIDDEN, HIDDEN, torch.ones(HIDDEN), rank.number * HIDDEN),
        (4, 2, torch.ones(1), 0),
    ):
        config, total = DwdpConfig(2, held, stride), stride + held
        torch.manual_seed(5)
        model = nn.Sequential(_usual(total, Mixing(total, 1)))
        experts = model.get_submodule("0.experts")
        if held == HIDDEN:
            del experts.bias  # it has as many rows, too
        for parameter in experts.parameters():
            parameter.data = parameter.data[start : start + held].clone()
        experts.get_buffer("mix").data = numbers
        before = snapshot(model)
        try:
            with enable(model, config):
                raise AssertionError("it was not refused")
        except ExpertsUnsupported as error:
            told.append(str(error))
        assert not differing(model, before)
    return told


def without_memory(rank: Rank) -> str:
    """Try to share layers whose biases have not been loaded; return what was told."""
    model = nn.Sequential(_usual(6))
    bias = model.get_parameter("0.experts.bias")
    model.get_submodule("0.experts").register_parameter("bias", nn.Parameter(bias.to("meta")))
    try:
        with enable(model, DwdpConfig(2, 4, 2)):
            return ""
    except ExpertsUnsupported as error:
        return str(error)


def compare(
    rank: Rank,
    config: DwdpConfig,
    model: nn.Module,
    prepare: Callable[[nn.Module], None],
    run: Callable[[nn.Module, int], torch.Tensor],
) -> list[str]:
    """Compare what a model computes with what it computes with all experts."""
    with torch.no_grad():
        expected = run(model, rank.number)
        shapes = _shapes(model)
        prepare(model)
        before = snapshot(model)
        with enable(model, config) as manager:
            assert all(same_bits(run(model, rank.number), expected) for _ in range(2))
            assert _shapes(model) == shapes
            names = [layer.name for layer in manager.layers]
        assert not differing(model, before)
    return names


def _answer(model: nn.Module, rank: int) -> torch.Tensor:
    found: torch.Tensor = model(torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(rank)))
    return found


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
