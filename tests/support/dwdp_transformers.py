"""Cases with models of transformers as they are, at small sizes. Run as a module under torchrun, it is one of them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from modelexpress.dwdp import DwdpConfig, enable
from tests.support.children import say
from tests.support.dwdp_models import cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS = 8
_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
}


def build(name: str) -> PreTrainedModel:
    """Return a model with random weights, the same for everybody."""
    torch.manual_seed(11)
    model: PreTrainedModel
    match name:
        case "qwen3_moe":
            # Every second layer is dense.
            model = Qwen3MoeForCausalLM(
                Qwen3MoeConfig(
                    **_COMMON,
                    num_hidden_layers=6,
                    head_dim=16,
                    moe_intermediate_size=40,
                    num_experts=EXPERTS,
                    decoder_sparse_step=2,
                )
            )
        case "mixtral":
            model = MixtralForCausalLM(MixtralConfig(**_COMMON, num_hidden_layers=3, num_local_experts=EXPERTS))
        case "deepseek_v3":
            # The first layer is dense; each of the others has an expert for all tokens.
            model = DeepseekV3ForCausalLM(
                DeepseekV3Config(
                    **_COMMON | {"num_key_value_heads": 4},
                    num_hidden_layers=5,
                    moe_intermediate_size=40,
                    n_routed_experts=EXPERTS,
                    n_shared_experts=1,
                    n_group=2,
                    topk_group=1,
                    first_k_dense_replace=1,
                    kv_lora_rank=16,
                    q_lora_rank=24,
                    qk_rope_head_dim=8,
                    qk_nope_head_dim=16,
                    v_head_dim=16,
                )
            )
        case _:
            model = GptOssForCausalLM(
                GptOssConfig(
                    **_COMMON,
                    num_hidden_layers=4,
                    head_dim=16,
                    num_local_experts=EXPERTS,
                    layer_types=["sliding_attention", "full_attention"] * 2,
                )
            )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(torch.bfloat16).eval()


def share(rank: Rank, name: str, config: Sequence[Any], loaded: str) -> list[str]:
    """Share a model's experts, and return the names of the layers that were shared."""
    return run(rank.number, build(name), DwdpConfig(*config), loaded)


def run(rank: int, model: PreTrainedModel, config: DwdpConfig, loaded: str) -> list[str]:
    """Compare logits and generated tokens with those of the whole model."""
    generator = torch.Generator().manual_seed(rank)
    prompts = [torch.randint(0, 96, (2, length), generator=generator) for length in (17, 5)]
    with torch.no_grad():
        expected = [model(prompt).logits for prompt in prompts]
        written = _written(model, prompts[0])
        if loaded == "part":
            cut(model, config, rank, EXPERTS)
        before = snapshot(model)
        with enable(model, config) as manager:
            assert all(map(same_bits, [model(prompt).logits for prompt in prompts], expected))
            assert same_bits(_written(model, prompts[0]), written)
            names = [layer.name for layer in manager.layers]
            assert all(len(layer.weights) == 2 for layer in manager.layers)
        assert not differing(model, before)
    return names


def _written(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    """Return the logits of some tokens that the model adds, one by one, with what it remembers of those before."""
    told = model(prompt, use_cache=True)
    logits = [told.logits[:, -1:]]
    for _ in range(3):
        told = model(logits[-1].argmax(-1), past_key_values=told.past_key_values, use_cache=True)
        logits.append(told.logits)
    return torch.cat(logits)


def main() -> None:
    """Do this as a rank that torchrun started."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    say(" ".join(run(dist.get_rank(), build("qwen3_moe"), DwdpConfig(2, 4, 4), "part")))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
