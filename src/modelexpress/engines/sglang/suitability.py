"""Which models are not taken from a peer: told apart before anything is done, and loaded natively."""

from collections.abc import Mapping
from typing import Any

import torch

from modelexpress.settings import Settings

_REASONS = {
    "cpu_offload_gb": "weights move between host and device while the engine runs (--cpu-offload-gb)",
    "enable_memory_saver": "the engine may give the memory of its weights away (--enable-memory-saver)",
    "enable_eplb": "expert load balancing moves weights between ranks while the engine runs (--enable-eplb)",
    "elastic_ep_backend": "elastic expert parallelism moves weights between ranks while the engine runs",
    "enable_paged_experts": "experts are paged in while the engine runs (--enable-paged-experts)",
    "kt_weight_path": "experts are computed on the host, from other files (--kt-weight-path)",
    "rl_quant_profile": "weights are replaced while the engine runs (--rl-quant-profile)",
}
"""Options which, when they are set, are a reason."""


def unsuitable(options: Mapping[str, Any], settings: Settings) -> str | None:
    """Return why an engine's weights are neither taken from a peer nor offered to others; None where they can be.

    Args:
        options: Those of the engine, as it has resolved them.
        settings: May forbid it.
    """
    if not settings.p2p_metadata:
        return "MX_P2P_METADATA=0 leaves nobody to ask for them"
    if (options.get("offload_group_size") or 0) > 0:  # -1 stands for none
        return "weights move between host and device while the engine runs (--offload-group-size)"
    return next((reason for name, reason in _REASONS.items() if options.get(name)), None)


def unsuitable_model(model: torch.nn.Module) -> str | None:
    """Return why this model cannot be processed before it is filled; None where it can be."""
    names = (name for name, parameter in model.named_parameters() if parameter.is_meta)
    return next((f"'{name}' gets its memory only while it is loaded" for name in names), None)
