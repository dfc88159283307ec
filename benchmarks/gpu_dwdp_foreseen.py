"""What `mx dwdp plan` foresees for the model of this benchmark, given how fast a run fetched and nothing else of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.config_shapes import shape_of_config
from modelexpress.dwdp.foresee import Foresight, Speed, foresee


def foreseen(run: Mapping[str, Any]) -> Foresight | None:
    """Return the plan for a run: rates of computing are the plan's defaults, an H200's.

    Args:
        run: What the part `ideal` returned: `shape`, `ranks`, `layers`, and the seconds of all layers' `fetch`.

    Returns:
        None where the run does not say its shape, or has none but small tensors, which are not fetched.
    """
    if "shape" not in run:
        return None
    shape = run["shape"]
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": shape["hidden"],
        "moe_intermediate_size": shape["intermediate"],
        "num_experts": shape["experts"],
        "num_experts_per_tok": shape["top_k"],
        "num_hidden_layers": run["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head"],
    }
    found = foresee(shape_of_config(config), DwdpConfig.spreading(shape["experts"], run["ranks"]))
    if not found.remote:
        return None
    bandwidth = found.remote * run["layers"] / run["fetch"]
    return dataclasses.replace(found, speed=Speed(bandwidth, prompt=shape["sequence"]))
