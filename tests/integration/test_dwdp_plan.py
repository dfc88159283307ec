"""What `mx dwdp plan` foresees is what sharing takes: the same bytes, in real processes."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.config_shapes import shape_of_config
from modelexpress.dwdp.foresee import foresee
from tests.support.children import Child

SIZE = 3
GRANULARITY = 1 << 14
QWEN = {
    "model_type": "qwen3_moe",
    "hidden_size": 72,
    "intermediate_size": 64,
    "moe_intermediate_size": 104,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 5,
    "mlp_only_layers": [1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "dtype": "float32",
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "dtype": "float32",
}


@pytest.mark.timeout(180)
def test_bytes_are_those_of_a_real_group(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                Child("tests.support.dwdp_plan_rank", str(rank), str(SIZE), str(tmp_path / "meet"), str(GRANULARITY))
            )
            for rank in range(SIZE)
        ]
        for config in (QWEN, GPT_OSS):
            for rank in ranks:
                rank.tell(json.dumps(config))
            taken: list[dict[str, Any]] = [rank.answer() for rank in ranks]
            shape = shape_of_config(config)
            spread = DwdpConfig.spreading(shape.layers[0].num_experts, SIZE)
            foreseen = foresee(shape, spread, granularity=GRANULARITY)
            for needs, found in zip(foreseen.ranks, taken, strict=True):
                assert found["made"] == needs.own + needs.slots
                assert found["reserved"] == needs.addresses
                assert found["copied"] == list(needs.remote)
