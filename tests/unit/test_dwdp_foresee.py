"""What foreseeing says of a group: shapes from every source, bytes by the layout, and the crossover."""

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress import dwdp
from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.config_shapes import depth_of_config, shape_of_config, work_of_config
from modelexpress.dwdp.foresee import Foresight, Speed, foresee
from modelexpress.dwdp.header_shapes import Stored, layers_of_tensors
from modelexpress.dwdp.layout import WeightLayout
from modelexpress.dwdp.shapes import ExpertTensor, LayerShape, ModelShape, Work, gated_experts
from modelexpress.errors import ConfigurationError, PartitionInvalid

QWEN = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "dtype": "bfloat16",
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
}


def sizes(shape: ModelShape) -> dict[str, int]:
    return {tensor.name: tensor.expert_bytes for tensor in shape.layers[0].tensors}


def test_foreseeing_needs_no_torch() -> None:
    script = "import sys, modelexpress.dwdp.foresee, modelexpress.dwdp.config_shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_public_name_can_be_imported_after_its_module() -> None:
    assert dwdp.__all__ == sorted(dwdp.__all__) == dir(dwdp)
    for name in dwdp.__all__:
        assert getattr(dwdp, name).__name__ == name
    assert not hasattr(dwdp, "no_such_name")


def test_configurations_of_transformers_models() -> None:
    qwen = shape_of_config(QWEN)
    assert sizes(qwen) == {"gate_up_proj": 2 * 768 * 2048 * 2, "down_proj": 768 * 2048 * 2}
    assert [layer.number for layer in qwen.layers] == list(range(48))
    mixtral = shape_of_config(MIXTRAL)
    assert sizes(mixtral) == {"gate_up_proj": 2 * 14336 * 4096 * 2, "down_proj": 14336 * 4096 * 2}
    gpt = shape_of_config(GPT_OSS)
    assert sizes(gpt)["gate_up_proj_bias"] == 2 * 2880 * 2
    assert gpt.layers[0].num_experts == 128


def test_dense_layers_are_left_out() -> None:
    deepseek = shape_of_config(DEEPSEEK)
    assert [layer.number for layer in deepseek.layers] == list(range(3, 61))
    every_second = shape_of_config(QWEN | {"decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert [layer.number for layer in every_second.layers] == list(range(3, 48, 2))


def test_quantised_experts_have_scales_beside_them() -> None:
    assert sizes(shape_of_config(DEEPSEEK)) == {
        "gate_up_proj": 4096 * 7168,
        "gate_up_proj_scale_inv": 32 * 56 * 4,
        "down_proj": 7168 * 2048,
        "down_proj_scale_inv": 56 * 16 * 4,
    }
    blocks = sizes(shape_of_config(GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}))
    assert blocks["gate_up_proj_blocks"] == 5760 * 2880 // 2
    assert blocks["gate_up_proj_scales"] == 5760 * 2880 // 32
    assert sizes(shape_of_config(DEEPSEEK, "bfloat16"))["down_proj"] == 2 * 7168 * 2048


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": None}, "num_experts or num_local_experts or n_routed_experts"),
        ({"hidden_size": -1}, "hidden_size=-1"),
        ({"hidden_size": "many"}, "hidden_size='many'"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"dtype": "float3"}, "float3"),
        ({"mlp_only_layers": list(range(48))}, "no layer with experts"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        shape_of_config(QWEN | changes)


def test_fields_of_the_text_within_a_model_that_sees() -> None:
    outer = {"model_type": "qwen3_vl_moe", "text_config": QWEN, "vision_config": {"hidden_size": 5}}
    assert sizes(shape_of_config(outer)) == sizes(shape_of_config(QWEN))
    assert depth_of_config(outer) == 48


def test_arithmetic_of_a_layer() -> None:
    qwen = work_of_config(QWEN)
    assert qwen.experts == 6 * 8 * 2048 * 768
    assert qwen.attention == 2 * (2048 * 4096 + 2 * 2048 * 512 + 4096 * 2048)
    assert work_of_config(MIXTRAL).attention == 0, "heads are not known"
    deepseek = work_of_config(DEEPSEEK)
    assert deepseek.experts == 6 * 9 * 7168 * 2048, "eight and the shared one"
    assert deepseek.routed * deepseek.row == 6 * 8 * 7168 * 2048, "the shared one is in no group"
    low = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert deepseek.attention == 2 * low
    assert deepseek.other_weights == deepseek.attention + 6 * 7168 * 2048, "two bytes a weight, and two FLOP"


@given(st.integers(1, 300), st.one_of(st.none(), st.integers(1, 300)))
def test_scores_of_attention_are_those_of_a_causal_prompt(prompt: int, window: int | None) -> None:
    keys = sum(min(token, window or token) for token in range(1, prompt + 1))
    work = Work(experts=5.0, attention=7.0, per_key=3.0, window=window)
    assert work.per_token(prompt) * prompt == pytest.approx(12 * prompt + 3 * keys)
    assert work.per_token() == 12


def test_a_checkpoint_with_a_tensor_for_each_expert() -> None:
    tensors = [Stored("model.embed_tokens.weight", (10, 8), 160)]
    for layer in (1, 2):
        prefix = f"model.layers.{layer}.mlp"
        tensors.append(Stored(f"{prefix}.shared_experts.gate_proj.weight", (4, 8), 64))
        tensors += [
            Stored(f"{prefix}.experts.{expert}.{name}.weight", (4, 8), 64)
            for expert in range(3)
            for name in ("gate_proj", "up_proj", "down_proj")
        ]
    found = layers_of_tensors(tensors, 3, depth=2)
    expected = (ExpertTensor("gate_up_proj.weight", 128), ExpertTensor("down_proj.weight", 64))
    assert found == (LayerShape(1, 3, expected),), "layer 2 is for drafts"


def test_a_checkpoint_with_stacked_experts() -> None:
    stored = [Stored("model.layers.0.mlp.experts.down_proj_bias", (4, 6), 48)]
    assert layers_of_tensors(stored, 4, 1) == (LayerShape(0, 4, (ExpertTensor("down_proj_bias", 12),)),)
    with pytest.raises(ConfigurationError, match=r"\(4, 6\), but config.json says 5"):
        layers_of_tensors(stored, 5, 1)


def test_a_checkpoint_that_lacks_an_expert_is_refused() -> None:
    two = [Stored(f"model.layers.0.mlp.experts.{expert}.w2", (4, 8), 64) for expert in (0, 2)]
    with pytest.raises(ConfigurationError, match="2 of 3 experts"):
        layers_of_tensors(two, 3, 1)
    with pytest.raises(ConfigurationError, match="different sizes"):
        layers_of_tensors([Stored(two[0].name, (4, 8), 60), Stored("layers.0.experts.1.w2", (4, 8), 64)], 2, 1)


@given(st.integers(2, 6), st.integers(6, 40), st.integers(1, 3 << 20), st.integers(1, 5))
def test_bytes_are_those_of_the_layouts(size: int, num_experts: int, expert_bytes: int, layers: int) -> None:
    config = DwdpConfig.spreading(num_experts, size)
    tensors = (ExpertTensor("a", expert_bytes), ExpertTensor("scale", 4))
    shape = ModelShape("", tuple(LayerShape(number, num_experts, tensors) for number in range(layers)))
    granularity = 1 << 16
    foreseen = foresee(shape, config, granularity=granularity)
    shared = num_experts * expert_bytes > 2 * granularity
    for needs in foreseen.ranks:
        held = config.partition(num_experts).held(needs.rank)
        layout = WeightLayout(num_experts, held, expert_bytes, granularity)
        assert needs.own == (layers * layout.own_bytes if shared else 0)
        assert needs.slots == (min(layers, 2) * layout.pages * layout.page_bytes if shared else 0)
        assert needs.small == layers * num_experts * (4 if shared else 4 + expert_bytes)
        lacking = (num_experts - len(held)) * expert_bytes if shared else 0
        assert lacking - 2 * granularity < needs.remote[0] <= lacking, "edges were fetched once"
    assert foreseen.everything == layers * num_experts * (expert_bytes + 4)
    assert foreseen.remote == max(needs.remote[0] for needs in foreseen.ranks)


def published(**speed: Any) -> Foresight:
    """The shapes that the default speeds were measured with, on four ranks."""
    return foresee(shape_of_config(QWEN), DwdpConfig.spreading(128, 4), Speed(**speed))


def test_fetching_is_hidden_from_the_count_that_is_named() -> None:
    foreseen = published()
    assert foreseen.remote == 96 * 3 * 768 * 2048 * 2
    assert foreseen.fetch_seconds == pytest.approx(foreseen.remote / 372e9)
    crossing = foreseen.hidden_from
    assert crossing is not None
    before, after = foreseen.ratio(crossing - 1), foreseen.ratio(crossing)
    assert before is not None
    assert after is not None
    assert before < 1 <= after
    longer = published(prompt=8192).hidden_from
    assert longer is not None
    assert longer < crossing, "scores of attention hide something, too"


def test_what_was_measured_sets_the_scale() -> None:
    plain, foreseen = published(), published(measured=(8192, 4e-3))
    assert foreseen.compute_seconds(8192) == pytest.approx(4e-3)
    scale = 4e-3 / (plain.compute_seconds(8192) or 0.0)
    assert foreseen.compute_seconds(1024) == pytest.approx(scale * (plain.compute_seconds(1024) or 0.0))
    unknown = ModelShape("", shape_of_config(QWEN).layers)
    linear = foresee(unknown, DwdpConfig.spreading(128, 4), Speed(measured=(8192, 1.28e-3)))
    assert linear.hidden_from == math.ceil(linear.fetch_seconds / (1.28e-3 / 8192))


def test_without_arithmetic_there_is_no_crossover() -> None:
    shape = ModelShape("", (LayerShape(0, 8, gated_experts(64, 64, "float32")),))
    foreseen = foresee(shape, DwdpConfig.spreading(8, 2), granularity=4096)
    assert foreseen.hidden_from is None
    assert foreseen.ratio(1000) is None
    assert foreseen.fields()["seconds_to_compute"]["1024"] is None


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Speed(bandwidth=0)
    with pytest.raises(ConfigurationError):
        Speed(memory_bandwidth=0)
    with pytest.raises(ConfigurationError):
        Speed(measured=(0, 1.0))
    with pytest.raises(PartitionInvalid):
        foresee(shape_of_config(QWEN), DwdpConfig(4, 30, 30))
    with pytest.raises(ConfigurationError, match="float3"):
        gated_experts(8, 8, "float3")
    with pytest.raises(ConfigurationError, match="at least 1"):
        gated_experts(8, 0, "bfloat16")
