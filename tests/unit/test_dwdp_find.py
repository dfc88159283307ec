"""Experts are found by shapes, names and gates; what may be something else is refused, not guessed."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import MiniMaxConfig, MiniMaxForCausalLM, Qwen3MoeConfig
from transformers.integrations.finegrained_fp8 import FP8Experts

from modelexpress.dwdp import DwdpConfig
from modelexpress.dwdp.find import find_layer, find_layers, numbered_layer
from modelexpress.dwdp.model import ExpertLayer, StackedTensor
from modelexpress.errors import ExpertsUnsupported
from tests.support.dwdp_models import Block, Experts, Shape

UNIT = 4096
"""Granularity of memory, in bytes: what is smaller than two of them is kept whole."""
CONFIG = DwdpConfig(2, 4, 4)
"""8 experts, of which a rank stores 4."""


class Layer(nn.Module):
    """Modules and parameters by name."""

    def __init__(self, **parts: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))


def _block(rows: int = 8, gate: int = 8) -> Block:
    return Block(64, Shape(gate, 48), Experts(rows, 64, 48))


def _names(found: list[StackedTensor] | Any) -> list[str]:
    return [one.name for one in found]


def _find(model: nn.Module, config: DwdpConfig = CONFIG) -> list[ExpertLayer]:
    return find_layers(model, config, UNIT)


def _told(model: nn.Module, config: DwdpConfig = CONFIG) -> str:
    with pytest.raises(ExpertsUnsupported) as told:
        _find(model, config)
    return str(told.value)


def test_attention_that_looks_like_experts_is_left_alone() -> None:
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "num_local_experts": 8,
        "head_dim": 16,
    }
    model = MiniMaxForCausalLM(MiniMaxConfig(**small, layer_types=["full_attention", "linear_attention"]))
    assert model.get_buffer("model.layers.1.self_attn.slope_rate").shape[0] == 4
    assert [layer.name for layer in _find(model)] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    layer = find_layer(numbered_layer(model, 1), "layer 1", CONFIG, UNIT)
    assert layer.name == "layer 1.mlp"


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": (128, 128)},
        {"block_size": None, "activation_scheme": "static"},
        {"block_size": (128, 128), "scale_fmt": "ue8m0"},
    ],
)
def test_8_bit_floats_of_transformers(options: dict[str, Any]) -> None:
    config = Qwen3MoeConfig(hidden_size=512, moe_intermediate_size=256, num_experts=8)
    model = nn.Sequential(Layer(gate=nn.Linear(512, 8), experts=FP8Experts(config, **options)))
    (layer,) = _find(model)
    assert _names(layer.weights) == ["experts.gate_up_proj", "experts.down_proj"]
    both = ["experts.gate_up_proj_scale_inv", "experts.down_proj_scale_inv"]
    static = ["experts.gate_up_proj_activation_scale", "experts.down_proj_activation_scale"]
    assert _names(layer.small) == both + (static if "activation_scheme" in options else [])


def test_a_layer_with_experts_apart_beside_stacked_ones() -> None:
    apart = Layer(gate=nn.Linear(64, 8), experts=nn.ModuleList(nn.Linear(64, 64) for _ in range(8)))
    told = _told(nn.Sequential(_block(), _block(), apart))
    assert told.startswith("2.experts keeps 8 experts apart, in modules of their own: stack them")


def test_shared_experts_may_be_apart() -> None:
    block = _block()
    block.shared_experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
    assert len(_find(nn.Sequential(block))) == 1


def test_experts_without_a_gate_beside_those_with_one() -> None:
    told = _told(nn.Sequential(_block(), Layer(experts=Experts(8, 64, 48))))
    assert told.startswith("1.experts holds up (8, 48, 64), down (8, 64, 48), bias (8, 64), but no gate of 8 experts")


def test_a_gate_of_another_number() -> None:
    told = _told(nn.Sequential(_block(gate=7)))
    assert "has no layer with a gate and stacked experts: 0.experts holds up (8, 48, 64)" in told
    assert "no gate of 8 experts is around it" in told


def test_experts_without_a_dimension() -> None:
    flat = Layer(gate=nn.Linear(64, 8), experts=Layer(w1=torch.zeros(8 * 48, 64)))
    assert "0.experts holds w1 (384, 64), without a dimension for experts" in _told(nn.Sequential(flat))


def test_a_small_layer_that_is_whole_is_no_part() -> None:
    # Its hidden size is the number of experts of the others.
    few = Layer(gate=nn.Linear(8, 4), experts=Experts(4, 8, 400), mix=nn.Linear(8, 8))
    assert [layer.name for layer in _find(nn.Sequential(few, _block()))] == ["1"]


def test_two_gates_of_different_numbers() -> None:
    both = Layer(gate=nn.Linear(64, 4), router=nn.Linear(64, 8), experts=Experts(4, 64, 48))
    told = _told(nn.Sequential(both))
    assert told.startswith("0 has 4 rows in its stacked weights, and gates of 4 and of 8 experts (router, gate)")


def test_weights_in_part_and_whole() -> None:
    block = _block()
    block.experts.up = nn.Parameter(torch.zeros(4, 48, 64))
    assert _told(nn.Sequential(block)).startswith("0: experts.down has 8 rows, and experts.up 4: all stacked weights")


def test_what_is_only_shaped_like_a_part_beside_experts() -> None:
    attention = Layer(query=nn.Linear(64, 8), heads=torch.zeros(4, 64, 64))
    told = _told(nn.Sequential(_block(), Layer(attention=attention)))
    assert told.startswith("1.attention has tensors of 4 rows beside a weight of 8, as experts")
    assert "add_layer(number, module)" in told


def test_features_as_many_as_a_rank_stores_in_a_large_tensor() -> None:
    experts = Layer(up=torch.zeros(64, 48, 64), out=torch.zeros(64, 300))
    told = _told(nn.Sequential(Layer(gate=nn.Linear(64, 128), experts=experts)), DwdpConfig(2, 64, 64))
    assert told.startswith(
        "0: experts.out has 64 rows, as many as a rank stores experts, and as an expert has features"
    )


def test_a_gate_with_a_hidden_layer_has_biases_of_its_own() -> None:
    gate = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 8))
    (layer,) = _find(nn.Sequential(Layer(gate=gate, experts=Experts(4, 64, 48))))
    assert _names(layer.small) == ["experts.bias"]


def test_experts_that_say_how_many_they_are_need_no_gate() -> None:
    experts = Layer(up=torch.zeros(8, 48, 64), down=torch.zeros(8, 64, 48))
    experts.num_experts = 8  # type: ignore[assignment]
    assert [layer.name for layer in _find(nn.Sequential(Layer(experts=experts)))] == ["0"]
    assert [layer.name for layer in _find(nn.Sequential(experts))] == ["0"]
    assert find_layer(experts, "layer 3", CONFIG, UNIT).block is experts
