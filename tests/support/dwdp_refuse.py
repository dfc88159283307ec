"""Cases of what cannot be shared, and must be refused with the reason, on all ranks, with everything as it was."""

from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist
from torch import nn

from modelexpress.dwdp import DwdpConfig, DwdpManager, enable
from modelexpress.dwdp.host_machine import HostMachine
from modelexpress.errors import DeviceError, DwdpError, RankLost
from modelexpress.memory.host_vmm import HostVmm
from tests.support.dwdp_models import Experts, Shape, Toy, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS, HIDDEN, INNER = 6, 40, 33
CONFIG = DwdpConfig(2, 4, 2)


class Apart(nn.Module):
    """A layer whose experts are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS))


class Ungated(nn.Module):
    """Experts without a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts(EXPERTS, HIDDEN, INNER)


class Marked(torch.Tensor):
    """A tensor that is more than a tensor, as those that are spread over devices."""

    @property
    def data(self) -> Self:
        return self

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        raise NotImplementedError


def _layers(count: int = 2) -> Toy:
    return Toy(HIDDEN, [Shape(EXPERTS, INNER)] * count)


def _moving(name: str, value: object) -> nn.Module:
    model = _layers()
    setattr(model.layers[1], name, value)
    return model


def _loaded(rows: int) -> nn.Module:
    model = _layers()
    for layer in model.layers:
        for parameter in layer.get_submodule("experts").parameters():
            parameter.data = parameter.data[:rows].clone()
    return model


def _transposed(rank: int) -> nn.Module:
    model = _layers()
    parameter = model.get_parameter("layers.0.experts.up")
    parameter.data = parameter.data.transpose(0, 1).contiguous().transpose(0, 1)
    return model


def _meta(module: str) -> nn.Module:
    model = _layers()
    model.get_submodule(module).to("meta")
    return model


def _tied(rank: int) -> nn.Module:
    model = _layers()
    first, second = (layer.get_submodule("experts") for layer in model.layers)
    assert isinstance(first, Experts)
    assert isinstance(second, Experts)
    second.up = first.up
    return model


def _marked(rank: int) -> nn.Module:
    model = _layers()
    experts = model.get_submodule("layers.1.experts")
    marked = model.get_parameter("layers.1.experts.up").detach().as_subclass(Marked)
    del experts.up
    experts.register_buffer("up", marked)
    return model


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "experts apart": lambda rank: nn.Sequential(Apart()),
    "no gate": lambda rank: nn.Sequential(Ungated()),
    "dense": lambda rank: nn.Sequential(nn.Linear(HIDDEN, HIDDEN)),
    "wrong number": lambda rank: _loaded(3),
    "wrong number on one rank": lambda rank: _loaded(3 if rank else 4),
    "number of experts": lambda rank: Toy(HIDDEN, [Shape(8, INNER)] * 2),
    "pipeline": lambda rank: Toy(HIDDEN, [Shape(0, 7), Shape(EXPERTS, INNER)][:: 1 - 2 * rank]),
    "fewer layers": lambda rank: _layers(2 + rank),
    "inner size": lambda rank: Toy(HIDDEN, [Shape(EXPERTS, INNER + rank)] * 2),
    "type of numbers": lambda rank: _layers().to(torch.bfloat16 if rank else torch.float32),
    "load balancing": lambda rank: _moving("enable_eplb", True),
    "load balancer": lambda rank: _moving("layer_load_balancer", object()),
    "not contiguous": _transposed,
    "without memory": lambda rank: _meta("layers.1.experts"),
    "without memory on one rank": lambda rank: _meta("layers.1.experts") if rank else _layers(),
    "on no device on one rank": lambda rank: _meta("") if rank else _layers(),
    "one tensor": _tied,
    "more than a tensor": _marked,
    "settings": lambda rank: _layers(),
    "units": lambda rank: _layers(),
}


def refuse(rank: Rank, name: str) -> list[str]:
    """Try, and return what was told."""
    torch.manual_seed(4)
    model = MODELS[name](rank.number)
    before = {} if "memory" in name or "device" in name else snapshot(model)
    odd = rank.number == 1
    config = DwdpConfig(2, 4, 2, contention_opt=odd and name == "settings")
    machine = None if "device" in name else HostMachine(HostVmm(8192 if odd and name == "units" else 4096))
    try:
        with enable(model, config, machine=machine, deadline=20):
            raise AssertionError("it was not refused")
    except (DwdpError, DeviceError) as error:
        told = [type(error).__name__, str(error)]
    assert not before or not differing(model, before)
    assert DwdpManager._entered is None
    dist.barrier()
    return told


def added(rank: Rank) -> list[str]:
    """Name layers that are not there, and the like; return what was told."""
    model = _layers(3)
    told = []

    def tell(action: Callable[[], object]) -> None:
        try:
            action()
            told.append("")
        except DwdpError as error:
            told.append(str(error))

    with DwdpManager(CONFIG) as manager:
        tell(lambda: manager.wait_and_bind(model, 0))
        tell(lambda: manager.prefetch_first_layers())
        tell(lambda: manager.setup(model))
        manager.add_layer(1)
        tell(lambda: manager.add_layer(1))
        manager.setup(model)
        tell(lambda: manager.add_layer(2))
    with DwdpManager(CONFIG) as manager:
        manager.add_layer(3)
        tell(lambda: manager.setup(model))
    with DwdpManager(CONFIG) as manager:
        manager.add_layer(0, model)
        tell(lambda: manager.setup(model))
    with DwdpManager(CONFIG) as manager:
        manager.add_layer(0, model.layers[2])
        tell(lambda: manager.setup(model))
        assert [layer.block for layer in manager.layers] == [model.layers[2]]
        tell(lambda: manager.wait_and_bind(model.layers[2].get_submodule("experts"), 7))
        tell(lambda: manager.wait(1))
        tell(lambda: manager.record_compute_and_prefetch_next(-1))
    return told


def placed(rank: Rank, size: int, groups: int) -> list[str]:
    """Share a model among some ranks of the world; return what was told."""
    model = _layers()
    try:
        with enable(model, DwdpConfig(size, 6 - 2 * (size - 1), 2, groups)):
            told = ["", ""]
    except DwdpError as error:
        told = [type(error).__name__, str(error)]
    dist.barrier()
    return told


def no_member(rank: Rank) -> list[str]:
    """Share a model within groups that this rank is not in, or that are none; return what was told."""
    groups, told = [dist.new_group([0]), dist.new_group([1])], list[str]()
    others: list[object] = [groups[1 - rank.number], "world", ["world"]]
    for group in others:
        try:
            with enable(_layers(), CONFIG, group=group, deadline=20):
                told.append("it was not refused")
        except DwdpError as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def met_again(rank: Rank, alone: int) -> str:
    """Let one rank come alone and give up, and then all; return what it was told when it was alone."""
    model, told = _layers(), ""
    if rank.number == alone:
        try:
            with enable(model, CONFIG, deadline=0.3):
                told = "it was not alone"
        except RankLost as error:
            told = str(error)
    dist.barrier()
    for _ in range(2):
        with enable(model, CONFIG, deadline=20):
            pass
    return told


def subgroup(rank: Rank) -> None:
    """Share a model within groups of torch.distributed, whose ranks are in different numbers of groups."""
    torch.manual_seed(4)
    model, tokens = _layers(3), torch.randn(5, HIDDEN)
    with torch.no_grad():
        expected = model(tokens)
        dist.new_group([0, 2])
        dist.new_group([2])
        groups = [dist.new_group([3, 0]), dist.new_group([1, 2])]
        mine = groups[rank.number in (1, 2)]
        for _ in range(2):
            with enable(model, CONFIG, group=mine, deadline=20) as manager:
                assert manager.start_expert_id == 2 * dist.get_group_rank(mine, rank.number)
                assert same_bits(model(tokens), expected)
