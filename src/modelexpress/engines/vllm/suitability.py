"""Which models are not taken from a peer: told apart before anything is done, and loaded natively."""

from typing import Any

import torch

from modelexpress.settings import Settings


def unsuitable(vllm_config: Any, settings: Settings) -> str | None:
    """Return why an engine's weights are neither taken from a peer nor offered to others; None where they can be."""
    if not settings.p2p_metadata:
        return "MX_P2P_METADATA=0 leaves nobody to ask for them"
    offload = getattr(vllm_config, "offload_config", None)
    bytes_away = getattr(getattr(offload, "uva", None), "cpu_offload_gb", 0)
    if bytes_away or getattr(vllm_config.cache_config, "cpu_offload_gb", 0):
        return (
            "weights are offloaded to host memory (--cpu-offload-gb): they move between devices while the engine runs"
        )
    if vllm_config.model_config.enable_sleep_mode:
        return "sleep mode frees weights while the engine runs (--enable-sleep-mode)"
    if vllm_config.parallel_config.enable_eplb:
        return "expert load balancing moves weights between ranks while the engine runs (--enable-eplb)"
    if getattr(vllm_config.parallel_config, "enable_elastic_ep", False):
        return "elastic expert parallelism moves weights between ranks while the engine runs"
    return None


def unsuitable_model(model: torch.nn.Module) -> str | None:
    """Return why this model cannot be processed before it is filled; None where it can be."""
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "uses_meta_device", False):
            return f"'{name}' is quantised while it is loaded ({type(method).__name__})"
    return next(
        (f"'{name}' gets its memory only while it is loaded" for name, p in model.named_parameters() if p.is_meta), None
    )
