"""A tiny Qwen3-MoE with random weights, in the layout of its checkpoints: one tensor for each expert's matrix."""

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def write_experts(llama: Path, folder: Path) -> Path:
    """Write the checkpoint.

    Args:
        llama: A checkpoint whose tokenizer it gets.
        folder: Where to.
    """
    vocabulary = json.loads((llama / "config.json").read_text())["vocab_size"]
    torch.manual_seed(5)
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in llama.glob("token*"):
        shutil.copy(path, folder)
    return folder
