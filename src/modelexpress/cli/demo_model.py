"""The demonstration model: a Llama of random weights, built here and never downloaded."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelexpress.errors import CheckpointError, ConfigurationError
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.checkpoint_writer import CheckpointWriter
from modelexpress.weights.small_files import read_json_object
from modelexpress.weights.stored_tensor import TensorEntry

if TYPE_CHECKING:
    import torch

Scale = Literal["demo", "tiny"]

_RECIPE_FILE = "demo_recipe.json"
_RECIPE_VERSION = 1
_BYTES_PER_WEIGHT = 2  # bfloat16


@dataclasses.dataclass(frozen=True)
class _Size:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int


_SIZES: dict[str, _Size] = {
    "demo": _Size(hidden=2048, intermediate=5632, layers=11, heads=16, key_value_heads=4),
    "tiny": _Size(hidden=128, intermediate=352, layers=4, heads=4, key_value_heads=2),
}


def build_demo_model(folder: Path, *, seed: int = 0, scale: Scale = "demo") -> Path:
    """Make sure that `folder` holds the demonstration checkpoint, and return its path.

    A folder that holds it already is left alone; one with another demonstration checkpoint is replaced.
    Equal arguments give equal bytes under one version of torch.

    Args:
        folder: Where the checkpoint shall be.
        seed: Decides the weights.
        scale: "demo" for 1.0 GB in 102 tensors, "tiny" for 1.7 MB in 39; both in two shards.

    Raises:
        CheckpointError: The folder holds something else, or the disk is full.
        ConfigurationError: There is no such scale.
    """
    if scale not in _SIZES:
        raise ConfigurationError(f"there is no demonstration model {scale!r}; use one of {', '.join(_SIZES)}")
    recipe = {"seed": seed, "scale": scale, "version": _RECIPE_VERSION}
    replaceable = (folder / _RECIPE_FILE).exists()
    if replaceable and _is_complete(folder, recipe):
        return folder
    config = _llama_config(_SIZES[scale])
    entries = _entries(config)
    with CheckpointWriter(
        folder,
        entries,
        _side_files(config, recipe),
        shard_bytes=_two_shards(entries),
        overwrite=replaceable,
    ) as writer:
        _write_weights(writer, entries, seed)
        return writer.commit()


def demo_logits(model: Any, tokenizer: Any, prompt: str) -> "torch.Tensor":
    """Return the logits of the token after `prompt`, as float32 of shape (vocabulary,).

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompt: Any text that is not empty.
    """
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(**tokenizer(prompt, return_tensors="pt")).logits
    return logits[0, -1].float().cpu()


def logits_fingerprint(logits: "torch.Tensor") -> str:
    """Return 12 hex digits of SHA-256 over the logits' bytes: equal only if every bit is."""
    return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()[:12]


def _is_complete(folder: Path, recipe: dict[str, Any]) -> bool:
    try:
        with Checkpoint.open(folder):
            return read_json_object(folder / _RECIPE_FILE) == recipe
    except CheckpointError:
        return False


def _llama_config(size: _Size) -> Any:
    from transformers import LlamaConfig

    from modelexpress.cli.demo_tokenizer import VOCABULARY_SIZE

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=VOCABULARY_SIZE,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def _entries(config: Any) -> list[TensorEntry]:
    import torch
    from transformers import LlamaForCausalLM

    # On the meta device the model has names and shapes, and takes neither memory nor time.
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    return [
        TensorEntry(name, "bfloat16", tuple(tensor.shape), tensor.numel() * _BYTES_PER_WEIGHT)
        for name, tensor in state.items()
    ]


def _side_files(config: Any, recipe: dict[str, Any]) -> dict[str, bytes]:
    from transformers import GenerationConfig

    from modelexpress.cli.demo_tokenizer import tokenizer_files

    return {
        **tokenizer_files(),
        "config.json": config.to_json_string().encode(),
        "generation_config.json": GenerationConfig.from_model_config(config).to_json_string().encode(),
        _RECIPE_FILE: json.dumps(recipe).encode(),
    }


def _two_shards(entries: list[TensorEntry]) -> int:
    # More than half fits into the first file, so that the rest is less than half and fits into the second.
    return sum(entry.nbytes for entry in entries) // 2 + max(entry.nbytes for entry in entries)


def _write_weights(writer: CheckpointWriter, entries: list[TensorEntry], seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for entry in entries:
        # Drawn straight into the mapped file, in bfloat16: the model is never in memory as well.
        values = torch.frombuffer(writer.buffer(entry.name), dtype=torch.bfloat16)
        if len(entry.shape) == 1:  # the scales of a normalisation layer
            values.fill_(1)
        else:  # with this spread activations keep their scale from layer to layer, so that logits are sane
            values.normal_(std=entry.shape[1] ** -0.5, generator=generator)
