"""Cases in which computation is behind the thread that enqueues it, and copies are late."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.memory.host_vmm import HostVmm
from tests.support.dwdp_hostile import Hostile, Missing
from tests.support.dwdp_models import cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS, HIDDEN, FORWARDS = 6, 40, 8
INNER = (33, 57, 24, 41, 33)


class BrokenOff(Exception):
    """A forward does not go on."""


@dataclass
class Later:
    """A tensor that is there when a stream has got so far."""

    tensor: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class LateExperts(nn.Module):
    """Experts that enqueue their arithmetic."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, inner, HIDDEN) / HIDDEN**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, inner) / inner**0.5)
        self.enqueue: Callable[[Callable[[], object]], object] = lambda work: work()
        self.breaks: str = ""

    def forward(self, tokens: Later) -> Later:
        """Return the mean of the experts, later."""
        if self.breaks == "before":
            raise BrokenOff
        out = Later()
        self.enqueue(partial(self._compute, tokens, out))
        if self.breaks == "after":
            raise BrokenOff
        return out

    def _compute(self, tokens: Later, out: Later) -> None:
        with torch.no_grad():
            inner = torch.relu(torch.einsum("th,eih->tei", tokens.tensor, self.up))
            sums = torch.einsum("tei,ehi->th", inner, self.down)
            out.tensor = nn.functional.layer_norm(tokens.tensor + sums, sums.shape[1:])


class LateBlock(nn.Module):
    """A layer whose experts enqueue their arithmetic, in two steps."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = LateExperts(inner)

    def forward(self, tokens: Later) -> Later:
        """Call the experts twice, as for chunks."""
        return self.experts(self.experts(tokens))  # type: ignore[no-any-return]


class LateModel(nn.Module):
    """Layers that enqueue their arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LateBlock(inner) for inner in INNER)

    def forward(self, tokens: torch.Tensor) -> Later:
        """Return the last layer's tokens, later."""
        state = Later(tokens)
        for layer in self.layers:
            state = layer(state)
        return state

    @property
    def experts(self) -> list[LateExperts]:
        """Those of each layer."""
        return [module for module in self.modules() if isinstance(module, LateExperts)]


def run(rank: Rank, config: Sequence[Any], missing: str, breaks: Sequence[Sequence[Any]] = (), seed: int = 0) -> Any:
    """Run many forwards without waiting in between.

    Args:
        rank: This one.
        config: How experts are spread.
        missing: What is left out, by name.
        breaks: Layer, and whether it breaks off before or after its arithmetic, of forwards that do not come to an
            end; one before each of the first forwards.
        seed: Of the delays.

    Returns:
        Whether each forward was right.
    """
    spread = DwdpConfig(*config)
    torch.manual_seed(3)
    model = LateModel()
    torch.manual_seed(50 + rank.number)
    inputs = [torch.randn(7, HIDDEN) for _ in range(FORWARDS)]
    expected = [model(tokens).tensor for tokens in inputs]
    cut(model, spread, rank.number, EXPERTS)
    before = snapshot(model)
    lanes = 1 if spread.contention_opt else spread.dwdp_size - 1
    machine = Hostile(HostVmm(), lanes, len(INNER), seed + rank.number, Missing[missing])
    # Of this thread alone; with more of them sums are rounded in another way.
    machine.computing_stream.enqueue(partial(torch.set_num_threads, 1))
    found = []
    with enable(model, spread, machine=machine, observer=machine):
        for experts in model.experts:
            experts.enqueue = partial(_enqueue, machine)
        for number, tokens in enumerate(inputs):
            if number < len(breaks):
                _break_off(model, tokens, *breaks[number])
            found.append(model(tokens))
        machine.computing_stream.finish()
        right = [same_bits(one.tensor, known) for one, known in zip(found, expected, strict=True)]
    assert not differing(model, before)
    machine.computing_stream.close()
    return right


def _enqueue(machine: Hostile, work: Callable[[], object]) -> None:
    machine.computing_stream.enqueue(machine.delay)
    machine.computing_stream.enqueue(work)


def _break_off(model: LateModel, tokens: torch.Tensor, layer: int, when: str) -> None:
    experts = model.experts[layer]
    experts.breaks = when
    try:
        model(tokens)
    except BrokenOff:
        experts.breaks = ""
    else:
        raise AssertionError("the forward should have broken off")
