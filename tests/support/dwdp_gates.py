"""Cases with models of transformers whose gates are not children of their layers."""

from typing import Any

import torch
from torch import nn
from transformers import (
    AfmoeConfig,
    AfmoeForCausalLM,
    HunYuanMoEV1Config,
    HunYuanMoEV1ForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    PreTrainedModel,
)

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.errors import ExpertsUnsupported
from tests.support.dwdp_models import cut
from tests.support.dwdp_nursery import Rank
from tests.support.dwdp_rows import compare


def build(name: str) -> PreTrainedModel:
    """Return a model of transformers whose gate is not beside its experts, with random weights."""
    torch.manual_seed(11)
    common: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    low = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    model: PreTrainedModel
    match name:
        case "afmoe":
            model = AfmoeForCausalLM(
                AfmoeConfig(
                    **common, moe_intermediate_size=40, num_experts=8, num_experts_per_tok=3, num_dense_layers=1
                )
            )
        case "hunyuan":
            model = HunYuanMoEV1ForCausalLM(HunYuanMoEV1Config(**common, num_experts=8, moe_topk=3))
        case "jetmoe":
            del common["head_dim"]
            model = JetMoeForCausalLM(JetMoeConfig(**common, num_local_experts=8, kv_channels=16))
        case _:
            longcat = common | {"num_layers": 2, "head_dim": 8, "num_key_value_heads": 4}
            zero = 4 if name == "longcat with more" else 0
            del longcat["intermediate_size"], longcat["num_hidden_layers"]
            config = LongcatFlashConfig(
                **longcat,
                **low,
                ffn_hidden_size=40,
                expert_ffn_hidden_size=40,
                n_routed_experts=8,
                zero_expert_num=zero,
            )
            config.moe_topk = 3
            model = LongcatFlashForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def share(rank: Rank, name: str, total: int = 8) -> list[str]:
    """Share a model of transformers, loaded with all experts and in part; return the names of its layers."""
    names: list[str] = []
    config = DwdpConfig.spreading(total, 2)
    for loaded in ("all", "part") if name != "jetmoe" else ("all",):

        def prepare(model: nn.Module, in_part: bool = loaded == "part") -> None:
            if in_part:
                cut(model, config, rank.number, total)
                start = rank.number * config.num_prefetch_experts
                for within, parameter in model.named_parameters():
                    if within.endswith("expert_bias"):
                        parameter.data = parameter.data[start : start + config.num_experts_per_worker].clone()

        names = compare(rank, config, build(name), prepare, _logits)
    return names


def refuse(rank: Rank, name: str, total: int) -> str:
    """Try to share a model of transformers; return what was told."""
    try:
        with enable(build(name), DwdpConfig.spreading(total, 2)):
            return ""
    except ExpertsUnsupported as error:
        return str(error)


def _logits(model: nn.Module, rank: int) -> torch.Tensor:
    found: torch.Tensor = model(torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(rank))).logits
    return found
