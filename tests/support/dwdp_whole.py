"""Cases in which a model is taken for a whole while its experts are shared, or modules beside it compute with them."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

import modelexpress as mx
from modelexpress.dwdp import DwdpConfig, DwdpManager, enable
from modelexpress.errors import DwdpError, UnsupportedModel
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.settle import settle
from tests.support.dwdp_models import Experts, Shape, Toy, cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank
from tests.support.dwdp_odd import Stacked

EXPERTS, HIDDEN, INNER = 6, 40, 33
CONFIG = DwdpConfig(2, 4, 2)
IDENTITY = mx.SourceIdentity(model_name="toy", dtype="float32")


def _whole_takers(model: Toy) -> dict[str, Callable[[], object]]:
    """Return what would take the model, or one of its parameters, for a whole."""
    experts, before = model.get_submodule("layers.1.experts"), snapshot(model)
    up = model.get_parameter("layers.1.experts.up")
    return {
        "publish": lambda: mx.publish(model, IDENTITY),
        "publish one": lambda: mx.publish({"up": up}, IDENTITY),
        "publish rows": lambda: mx.publish({"row": up.data[2:3, :, ::2]}, IDENTITY),
        "load": lambda: mx.load(model, IDENTITY),
        "load by name": lambda: mx.load({"down": experts.get_parameter("down").data[1]}, IDENTITY),
        "plan": lambda: mx.plan(model, IDENTITY),
        "state_dict": model.state_dict,
        "state_dict of a layer": model.layers[1].state_dict,
        "state_dict of what holds them": experts.state_dict,
        "state_dict of what is around": nn.Sequential(model).state_dict,
        "load_state_dict": lambda: model.load_state_dict({name: torch.zeros_like(one) for name, one in before.items()}),
        "load_state_dict of what holds them": lambda: experts.load_state_dict({}, strict=False),
        "deepcopy": lambda: copy.deepcopy(model),
        "deepcopy of a parameter": lambda: copy.deepcopy(dict(model.named_parameters())),
        "pickle": lambda: pickle.dumps(model),
        "pickle of a parameter": lambda: pickle.dumps(up),
        "save": lambda: torch.save(model, io.BytesIO()),
        "save of a parameter": lambda: torch.save({"up": up}, io.BytesIO()),
        "save of a layer": lambda: torch.save(model.layers[0], io.BytesIO()),
    }


def refused(rank: Rank, by_hand: bool) -> dict[str, list[str]]:
    """Try each, and return what was told; the model computes the same afterwards, and can be taken behind the block."""
    torch.manual_seed(8)
    model, tokens = Toy(HIDDEN, [Shape(EXPERTS, INNER)] * 5), torch.randn(5, HIDDEN)
    before, attributes = snapshot(model), _attributes(model)
    told = {}
    with torch.no_grad():
        expected = model(tokens)
        with _shared(model, by_hand) as forward:
            assert same_bits(forward(tokens), expected)
            for name, take in _whole_takers(model).items():
                try:
                    take()
                    told[name] = ["", "it was not refused"]
                except (DwdpError, UnsupportedModel) as error:
                    told[name] = [type(error).__name__, str(error)]
                    del error
            assert same_bits(model.get_parameter("layers.0.gate.weight"), before["layers.0.gate.weight"])
            for _ in range(2):
                assert same_bits(forward(tokens), expected)
            _parts_that_are_whole(model)
    assert _attributes(model) == attributes
    _whole_again(model, before)
    return told


@contextmanager
def _shared(model: Toy, by_hand: bool) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Share a model's experts, and yield its forward."""
    if not by_hand:
        with enable(model, CONFIG):
            yield model
        return
    with DwdpManager(CONFIG) as manager:
        for number in range(5):
            manager.add_layer(number)
        manager.setup(model)
        yield partial(_forward, manager, model)


def _forward(manager: DwdpManager, model: Toy, tokens: torch.Tensor) -> torch.Tensor:
    manager.prefetch_first_layers()
    for number, layer in enumerate(model.layers):
        manager.wait_and_bind(layer.get_submodule("experts"), number)
        tokens = nn.functional.layer_norm(tokens + layer(tokens), tokens.shape[1:])
        manager.record_compute_and_prefetch_next(number)
    return tokens


def _attributes(model: nn.Module) -> list[list[str]]:
    """Return what guards may leave behind: attributes of modules and tensors, and hooks."""
    things = [*model.modules(), *model.parameters(), *model.buffers()]
    hooks = [
        [*module._state_dict_pre_hooks.values(), *module._load_state_dict_pre_hooks.values()]
        for module in model.modules()
    ]
    return [*(sorted(vars(thing)) for thing in things), *(list(map(repr, found)) for found in hooks)]


def _parts_that_are_whole(model: Toy) -> None:
    """Take what is not shared: nobody minds."""
    gate = model.get_submodule("layers.0.gate")
    gate.load_state_dict(copy.deepcopy(gate).state_dict())
    assert len(catalogue(dict(gate.named_parameters()))) == 1
    bias = model.get_parameter("layers.0.experts.bias")
    assert same_bits(copy.deepcopy(bias), bias)
    assert len(catalogue({"bias": bias, "new": torch.empty(3), "none": torch.empty(0), "meta": bias.to("meta")})) == 4


def _whole_again(model: Toy, before: dict[str, torch.Tensor]) -> None:
    assert not differing(model, before)
    assert not differing(copy.deepcopy(model), before)
    assert not differing(pickle.loads(pickle.dumps(model)), before)
    model.load_state_dict(model.state_dict())
    assert len(catalogue(model)) == len(before)


def published_before(rank: Rank) -> None:
    """What was offered before the block, of host memory, stays what it was."""
    torch.manual_seed(8)
    model, tokens = Toy(HIDDEN, [Shape(EXPERTS, INNER)] * 3), torch.randn(5, HIDDEN)
    before = snapshot(model)
    settled = settle(catalogue(model))
    with torch.no_grad(), enable(model, CONFIG):
        model(tokens)
        names = settled.tensors.names
        for name, region, offset in zip(names, *settled.places(names), strict=True):
            part = settled.regions[region].view()[offset : offset + before[name].nbytes]
            assert bytes(part) == before[name].numpy().tobytes(), name
    assert not differing(model, before)


class Quiet(nn.Module):
    """A module of an engine's own: names of the model's, some of them for something else."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(rows, INNER, HIDDEN))
        self.down = nn.Parameter(torch.randn(rows, HIDDEN))
        self.register_buffer("bias", torch.randn(rows, HIDDEN))


def modules_of_ones_own(rank: Rank, loaded: str) -> list[str]:
    """Compute with modules beside the model's; return what was told where one wanted to take them for a whole."""
    torch.manual_seed(8)
    model, tokens = Toy(HIDDEN, [Shape(EXPERTS, INNER)] * 3), torch.randn(5, HIDDEN)
    scores, whole = torch.rand(5, EXPERTS), snapshot(model)
    if loaded == "part":
        cut(model, CONFIG, rank.number, EXPERTS)
    others = [Experts(4, HIDDEN, INNER), Experts(EXPERTS, HIDDEN, INNER)]
    quiet = Quiet(4)
    before, told = [snapshot(one) for one in (*others, quiet)], list[str]()
    with torch.no_grad():
        with DwdpManager(CONFIG) as manager:
            manager.add_all_layers()
            manager.setup(model)
            manager.prefetch_first_layers()
            for number in range(3):
                mine = model.get_submodule(f"layers.{number}.experts")
                bound: tuple[nn.Module, ...] = (*others, quiet, mine) if number == 1 else (mine,)
                for other in bound:
                    for _ in range(2):
                        manager.wait_and_bind(other, number)
                if number == 1:
                    for one in others:
                        assert same_bits(one(tokens, scores), mine(tokens, scores))
                        for name, parameter in one.named_parameters():
                            assert same_bits(parameter, whole[f"layers.1.experts.{name}"])
                    assert same_bits(quiet.get_buffer("bias"), whole["layers.1.experts.bias"])
                    assert same_bits(quiet.down, before[2]["down"])
                    told = _told(others[0], quiet)
                manager.record_compute_and_prefetch_next(number)
        for module, known in zip((*others, quiet), before, strict=True):
            assert not differing(module, known)
            assert not differing(copy.deepcopy(module), known)
    return told


def _told(other: nn.Module, quiet: nn.Module) -> list[str]:
    told = []
    takers: list[Callable[[], Any]] = [other.state_dict, lambda: copy.deepcopy(quiet), lambda: catalogue(other)]
    for take in takers:
        try:
            take()
            told.append("it was not refused")
        except (DwdpError, UnsupportedModel) as error:
            told.append(str(error))
            del error
    return told


class Alike(nn.Module):
    """Experts whose two weights are in modules of their own, of the same name and the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.up, self.down = Stacked(HIDDEN, HIDDEN), Stacked(HIDDEN, HIDDEN)


def alike(rank: Rank) -> str:
    """Bind the model's own modules, which are told apart, and one that cannot be; return what was told of it."""
    torch.manual_seed(8)
    model = nn.Sequential(Alike(), Alike())
    before, told = snapshot(model), ""
    with DwdpManager(CONFIG) as manager:
        manager.add_all_layers()
        manager.setup(model)
        for number in range(2):
            for name in ("up", "down"):
                manager.wait_and_bind(model.get_submodule(f"{number}.{name}"), number)
                found = model.get_parameter(f"{number}.{name}.weight")
                assert same_bits(found, before[f"{number}.{name}.weight"])
        try:
            manager.wait_and_bind(Stacked(HIDDEN, HIDDEN), 0)
        except DwdpError as error:
            told = str(error)
            del error
    assert not differing(model, before)
    return told
