"""A checkpoint whose linear layers are quantised to eight bits, as the package compressed-tensors lays them out."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_LEVELS = 127
_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def quantise(folder: Path) -> Path:
    """Quantise the linear layers of a checkpoint where it is: int8, with a scale for each row.

    Args:
        folder: Of a Llama.
    """
    index = folder / "model.safetensors.index.json"
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    for name in set(places.values()):
        tensors = load_file(folder / name)
        for key in [key for key in tensors if key.endswith("_proj.weight")]:
            weight = tensors[key].float()
            scale = weight.abs().amax(dim=1, keepdim=True) / _LEVELS
            tensors[key] = (weight / scale).round().to(torch.int8)
            tensors[key.removesuffix("weight") + "weight_scale"] = scale
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": _CONFIG}))
    return folder
