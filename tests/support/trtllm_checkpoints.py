"""Checkpoint folders as `convert_checkpoint` of TensorRT-LLM writes them: small, and different in every rank."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def config_of(tensor: int = 2, pipeline: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a configuration with many fields of its own, some of which no reader of it knows."""
    return {
        "producer": {"name": "test", "version": "1.2.0"},
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "norm_epsilon": 1e-05,
        "rotary_scaling": {"type": "llama3", "factor": 8.0},
        "vocab_size": 128,
        "mapping": {
            "world_size": tensor * pipeline,
            "tp_size": tensor,
            "pp_size": pipeline,
            "gpus_per_node": 8,
        },
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "größe": "ä\u2028",
    } | fields


def plain_rank(rank: int) -> Tensors:
    """Return tensors of several shapes, some of which end at odd bytes."""
    generator = torch.Generator().manual_seed(rank)
    return {
        "transformer.vocab_embedding.weight": torch.randn(128, 32, generator=generator).to(torch.bfloat16),
        "transformer.layers.0.attention.qkv.weight": torch.randn(48, 64, generator=generator).to(torch.bfloat16),
        "transformer.layers.0.mlp.fc.weight": torch.randn(3, 5, 7, generator=generator),
        "transformer.ln_f.weight": torch.randn(64, generator=generator).to(torch.bfloat16),
        "transformer.odd": torch.randint(0, 255, (13,), dtype=torch.uint8, generator=generator),
        "transformer.scalar": torch.tensor(float(rank)),
        "transformer.empty": torch.zeros(0, 4),
        "transformer.step": torch.arange(3, dtype=torch.int64) + rank,
    }


def fp8_rank(rank: int) -> Tensors:
    """Return float8 weights with their scales, as fp8 checkpoints have them."""
    generator = torch.Generator().manual_seed(rank)
    weight = torch.randn(64, 48, generator=generator)
    return {
        "layers.0.qkv.weight": weight.to(torch.float8_e4m3fn),
        "layers.0.qkv.weights_scaling_factor": torch.tensor([0.5 + rank]),
        "layers.0.qkv.activation_scaling_factor": torch.tensor([0.25]),
        "layers.0.kv_cache_scaling_factor": torch.tensor([1.0]),
        "layers.0.fc.weight": weight.to(torch.float8_e5m2),
    }


def int4_rank(rank: int) -> Tensors:
    """Return int4 weights, two in each int8, with scales and zero points, as weight-only checkpoints have them."""
    generator = torch.Generator().manual_seed(rank)
    return {
        "layers.0.qkv.weight": torch.randint(-128, 127, (64, 24), dtype=torch.int8, generator=generator),
        "layers.0.qkv.weights_scaling_factor": torch.randn(2, 48, generator=generator).to(torch.float16),
        "layers.0.qkv.zero": torch.randn(2, 48, generator=generator).to(torch.float16),
        "layers.0.qkv.prequant_scaling_factor": torch.randn(64, generator=generator).to(torch.float16),
    }


def pipeline_rank(rank: int) -> Tensors:
    """Return what a stage of a pipeline of two has: the first embeds, the last has the head, layers differ."""
    stage = plain_rank(rank)
    own = {f"transformer.layers.{rank * 2 + layer}.fc.weight": torch.randn(8, 8 + layer) for layer in range(2)}
    ends = ["transformer.vocab_embedding.weight"] if rank == 0 else ["transformer.ln_f.weight", "transformer.step"]
    return own | {name: stage[name] for name in ends}


def big_rank(rank: int, megabytes: int) -> Tensors:
    """Return tensors of a mebibyte each."""
    generator = torch.Generator().manual_seed(1000 + rank)
    return {
        f"layer.{number:04}": torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, generator=generator)
        for number in range(megabytes)
    }


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], make: Callable[[int], Tensors], metadata: dict[str, str] | None = None
) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        folder: To create.
        config: The configuration; the mapping in it says how many ranks there are.
        make: Returns the tensors of a rank.
        metadata: Of the files of the ranks.
    """
    folder.mkdir(parents=True)
    # Indented, and with a character of its own: no reader that writes it anew gets the same bytes.
    (folder / "config.json").write_text(json.dumps(config, indent=4, ensure_ascii=False) + "\n\n", encoding="utf-8")
    for rank in range(config["mapping"]["world_size"]):
        save_file(make(rank), folder / f"rank{rank}.safetensors", metadata or {"made by": "convert_checkpoint"})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
