"""What one rank holds: each memory once, under a name that two replicas agree on."""

from typing import Any

import pytest
import torch
from torch import nn

from modelexpress.errors import UnsupportedModel
from modelexpress.weights.rank_tensors import every_part, rank_tensors


class Layer(nn.Module):
    """A layer that may refer to the one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.next_attn: nn.Module | None = None
        self.attn = nn.Linear(4, 4, bias=False)


ALIASES = frozenset({"next_attn"})


def test_an_alias_is_no_place_of_its_own_though_it_comes_first() -> None:
    model: Any = nn.Sequential(Layer(), Layer())
    plain = rank_tensors(model, ALIASES)
    model[0].next_attn = model[1].attn
    assert [name for name, _ in model.named_parameters()] == ["0.attn.weight", "0.next_attn.weight"]
    assert list(rank_tensors(model, ALIASES)) == list(plain) == ["0.attn.weight", "1.attn.weight"]


def test_what_only_an_alias_leads_to_is_refused() -> None:
    model: Any = Layer()
    model.next_attn = nn.Linear(4, 4)
    with pytest.raises(UnsupportedModel, match=r"2 tensors .* 'next_attn.bias'"):
        rank_tensors(model, ALIASES)


def test_of_one_memory_the_first_name_stays_and_of_parts_the_whole() -> None:
    model = nn.Module()
    fused = torch.arange(24.0).reshape(6, 4)
    model.first = nn.Parameter(fused[:2])
    model.fused = nn.Parameter(fused)
    model.tied = nn.Parameter(fused)
    model.second = nn.Parameter(fused[4:])
    assert list(rank_tensors(model)) == ["fused"]
    assert list(every_part(model)) == ["first", "fused", "tied", "second"]


def test_neighbours_in_one_memory_both_stay() -> None:
    model = nn.Module()
    fused = torch.arange(24.0).reshape(6, 4)
    model.first, model.second = nn.Parameter(fused[:3]), nn.Parameter(fused[3:])
    assert list(rank_tensors(model)) == ["first", "second"]


def test_empty_tensors_all_stay_though_they_have_one_address() -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.empty(0)), "b": nn.Parameter(torch.empty(0, 3))})
    assert list(rank_tensors(model)) == ["a", "b"]


def test_buffers_that_are_computed_are_left_out() -> None:
    model = nn.Module()
    model.register_buffer("scale", torch.ones(1))
    model.register_buffer("table", torch.ones(2), persistent=False)
    assert list(rank_tensors(model)) == ["scale"]


def test_tensors_without_memory_are_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"'weight' has no memory yet"):
        rank_tensors(nn.Linear(2, 2, device="meta"))
