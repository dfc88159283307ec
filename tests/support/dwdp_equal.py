"""Cases in which ranks share experts, and compute what a model with all experts computes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.dwdp.host_machine import HostMachine
from modelexpress.memory.host_vmm import HostVmm
from tests.support.dwdp_models import Shape, Toy, cut, differing, quantized, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

FORWARDS = 3


def toy(rank: Rank, config: Sequence[Any], hidden: int, shapes: Sequence[Sequence[Any]], **how: Any) -> None:
    """Share a toy model whose layers are as given."""
    torch.manual_seed(7)
    _share(rank, DwdpConfig(*config), Toy(hidden, [Shape(*shape) for shape in shapes]), shapes[0][0], **how)


def eight_bits(rank: Rank, config: Sequence[Any], hidden: int, experts: int, **how: Any) -> None:
    """Share a toy model of 8-bit floats."""
    torch.manual_seed(8)
    _share(rank, DwdpConfig(*config), quantized(hidden, experts, 3), experts, **how)


def _share(
    rank: Rank, config: DwdpConfig, model: nn.Module, experts: int, loaded: str = "part", granularity: int = 4096
) -> None:
    width = next(iter(model.parameters())).shape[-1]
    torch.manual_seed(100 + rank.number)
    inputs = [torch.randn(9, width) for _ in range(FORWARDS)]
    with torch.no_grad():
        expected = [model(tokens) for tokens in inputs]
        whole = snapshot(model)
        place = config.place(rank.number, rank.world)
        if loaded == "part" or (loaded == "mixed" and place.rank):
            cut(model, config, place.rank, experts)
        before = snapshot(model)
        kept = {name: id(tensor) for name, tensor in model.named_parameters()}
        with enable(model, config, machine=HostMachine(HostVmm(granularity))):
            # Nobody waits between them: the next forward begins while the last one's fetches are under way.
            found = [model(tokens) for tokens in inputs]
            assert {name: tensor.shape for name, tensor in model.named_parameters()} == {
                name: whole[name].shape for name in kept
            }
        assert all(map(same_bits, found, expected))
        assert not differing(model, before)
        assert {name: id(tensor) for name, tensor in model.named_parameters()} == kept
        if loaded == "all":
            assert all(map(same_bits, [model(tokens) for tokens in inputs], expected))
