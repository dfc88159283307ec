"""Models that keep or call their experts in ways of their own, and are served all the same."""

from collections.abc import Callable

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.dwdp.host_machine import CallersStream
from modelexpress.memory.host_vmm import HostVmm
from tests.support.dwdp_hostile import Hostile
from tests.support.dwdp_models import Block, Experts, Shape, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS, HIDDEN, INNER = 6, 40, 33
CONFIG = DwdpConfig(2, 4, 2)


class Stacked(nn.Module):
    """One stacked linear map, whose parameter has the name that all of them have."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, rows, columns) / columns**0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what each expert makes of tokens [experts or 1, tokens, columns]."""
        found: torch.Tensor = tokens @ self.weight.transpose(1, 2)
        return found


def _summed(found: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the sum over experts of what each found [experts, tokens, hidden], by the gate's [tokens, experts]."""
    return (found * chosen.softmax(-1).T[:, :, None]).sum(0)


class InTwoModules(nn.Module):
    """Experts whose two weights are in modules of their own, both named `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.up, self.down = Stacked(INNER, HIDDEN), Stacked(HIDDEN, INNER)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum."""
        found = self.down(torch.relu(self.up(tokens[None])))
        return _summed(found, self.gate(tokens))


class WithoutForward(nn.Module):
    """Experts in a container, which the layer itself computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = nn.ParameterDict(
            {"up": torch.randn(EXPERTS, INNER, HIDDEN) / 6, "down": torch.randn(EXPERTS, HIDDEN, INNER) / 6}
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum."""
        found = torch.relu(tokens @ self.experts["up"].transpose(1, 2)) @ self.experts["down"].transpose(1, 2)
        return _summed(found, self.gate(tokens))


class Reached(nn.Module):
    """Experts that could be called, but are reached into."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = Experts(EXPERTS, HIDDEN, INNER)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum."""
        found = torch.relu(tokens @ self.experts.up.transpose(1, 2)) @ self.experts.down.transpose(1, 2)
        return _summed(found, self.gate(tokens))


class Around(nn.Module):
    """A layer that calls what is within its block, but never the block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _usual()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum."""
        experts, gate = self.block.get_submodule("experts"), self.block.get_submodule("gate")
        found: torch.Tensor = experts(tokens, gate(tokens).softmax(-1))
        return found


class InTheLayer(nn.Module):
    """Stacked weights that belong to the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN) / 6)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER) / 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum."""
        tokens = self.mix(self.norm(tokens))
        found = torch.relu(tokens @ self.up.transpose(1, 2)) @ self.down.transpose(1, 2)
        return _summed(found, self.router(tokens))


class Skipping(nn.Module):
    """A layer that calls its experts only for every other forward."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = Experts(EXPERTS, HIDDEN, INNER)
        self.turn = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the experts' sum, or the tokens."""
        self.turn += 1
        found: torch.Tensor = self.experts(tokens, self.gate(tokens).softmax(-1)) if self.turn % 2 else tokens
        return found


class Convolved(nn.Module):
    """A layer of another kind, whose shapes look like those of a gate with experts."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.across = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens, each mixed with its neighbours."""
        return torch.relu(self.across(self.mix(tokens).T).T)


class Twice(nn.Module):
    """A layer that is used twice in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _usual()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of what it made."""
        return torch.tanh(self.inner(torch.tanh(self.inner(tokens))))


class SameName(Block):
    """A layer that has a parameter of the name of its experts' weight, for something else."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, Shape(EXPERTS, INNER), Experts(EXPERTS, HIDDEN, INNER))
        self.up = nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scale tokens, and ask the experts."""
        return super().forward(tokens * self.up)


def _usual() -> nn.Module:
    return Block(HIDDEN, Shape(EXPERTS, INNER, 2), Experts(EXPERTS, HIDDEN, INNER))


def _again() -> nn.Module:
    """A model whose second half is its first."""
    half = nn.Sequential(_usual(), _usual(), _usual())
    return nn.Sequential(half, nn.Sequential(*half))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "in two modules": lambda: nn.Sequential(*(InTwoModules() for _ in range(4))),
    "without forward": lambda: nn.Sequential(*(WithoutForward() for _ in range(4))),
    "reached": lambda: nn.Sequential(*(Reached() for _ in range(4))),
    "around": lambda: nn.Sequential(*(Around() for _ in range(4))),
    "in the layer": lambda: nn.Sequential(*(InTheLayer() for _ in range(4))),
    "skipping": lambda: nn.Sequential(*(Skipping() for _ in range(5))),
    "convolved": lambda: nn.Sequential(Convolved(), _usual(), _usual(), _usual()),
    "twice": lambda: nn.Sequential(*(Twice() for _ in range(4))),
    "again": _again,
    "same name": lambda: nn.Sequential(*(SameName() for _ in range(4))),
}


def share(rank: Rank, name: str) -> None:
    """Share a model's experts while copies are late, and compare."""
    torch.manual_seed(9)
    model = MODELS[name]()
    inputs = [torch.randn(5, HIDDEN) for _ in range(4)]
    with torch.no_grad():
        expected = [model(tokens) for tokens in inputs]
        before = snapshot(model)
        machine = Late(HostVmm(), 1, 99, rank.number)
        with enable(model, CONFIG, machine=machine):
            found = [model(tokens) for tokens in inputs]
        assert all(map(same_bits, found, expected))
        assert not differing(model, before)


class Late(Hostile):
    """Copies late, into poison; what computes is the thread that calls."""

    def __init__(self, vmm: HostVmm, lanes: int, layers: int, seed: int) -> None:
        super().__init__(vmm, lanes, layers, seed)
        self.computing_stream.close()
        self._compute = CallersStream()
