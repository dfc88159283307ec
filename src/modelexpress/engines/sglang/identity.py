"""What an SGLang worker's weights are: an identity from the engine's configuration, and the rank within the replica."""

from collections.abc import Mapping
from typing import Any

import torch

from modelexpress.engines.identity import digest_of, gpu_architecture, revision_of
from modelexpress.identity import BackendFramework, SourceIdentity, package_version
from modelexpress.settings import Settings

_OPTIONS = (
    *("attention_backend", "decode_attention_backend", "prefill_attention_backend", "kv_cache_dtype"),
    *("attn_cp_size", "attn_dp_size", "dcp_size", "enable_dp_attention", "enable_dp_lm_head"),
    *("enable_shared_experts_attn_tp", "shared_experts_tp_size", "enable_dense_mlp_attn_tp", "moe_dense_tp_size"),
    *("moe_dp_size", "moe_a2a_backend", "moe_runner_backend", "dwdp_size", "enable_w4a4_mxfp4_megamoe"),
    *("ep_num_redundant_experts", "init_expert_location"),
    *("disable_shared_experts_fusion", "enforce_shared_experts_fusion"),
    *("fp8_gemm_runner_backend", "fp4_gemm_runner_backend", "bf16_gemm_backend", "enable_fp32_lm_head"),
    *("json_model_override_args", "model_impl", "modelopt_quant", "rl_quant_profile", "quantization_param_path"),
    *("enable_multimodal", "language_only", "encoder_only", "speculative_algorithm"),
)
"""Options that decide which tensors a rank has, or how the post-load step leaves them, where the engine has them."""


_COMPILE_OPTIONS = (
    "enable_torch_compile",
    "torch_compile_max_bs",
    "cuda_graph_config",
    "sampling_backend",
    "page_size",
)


def identity_of(model_config: Any, load_config: Any, settings: Settings) -> SourceIdentity:
    """Return the identity of the weights of one model of the engine that this process is a worker of.

    Args:
        model_config: SGLang's, of the model that is loaded: the engine's, or the draft of speculative decoding.
        load_config: SGLang's.
        settings: May name the revision.
    """
    import sglang
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return SourceIdentity(
        mx_version=package_version(),
        model_name=str(model_config.model_path),
        backend_framework=BackendFramework.SGLANG,
        tensor_parallel_size=parallel.tp_size,
        pipeline_parallel_size=parallel.pp_size,
        expert_parallel_size=parallel.ep_size,
        dtype=str(model_config.dtype).removeprefix("torch."),
        quantization=str(model_config.quantization or ""),
        revision=revision_of(model_config.model_path, model_config.revision, model_config.hf_config, settings),
        backend_framework_version=str(sglang.__version__),
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda or "",
        gpu_arch=gpu_architecture(),
        extra_parameters=_parameters(model_config, load_config),
    )


def rank_of_worker() -> int:
    """Return the rank of this worker within its replica: pipeline stages one after another, each with all its ranks."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return int(parallel.tp_size * parallel.pp_rank + parallel.tp_rank)


def compile_options(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return those of an engine's options that decide what torch.compile is given, with their values."""
    return [(name, str(options[name])) for name in _COMPILE_OPTIONS if name in options]


def _parameters(model_config: Any, load_config: Any) -> dict[str, str]:
    from sglang.srt.runtime_context import get_context
    from sglang.srt.utils import cpu_has_amx_support

    options = get_context().resolved_server_args_dict()
    role = f"draft {load_config.draft_model_idx or 0}" if model_config.is_draft_model else ""
    found = {
        "architectures": ",".join(getattr(model_config.hf_config, "architectures", None) or []),
        "role": role,
        "quantization_config": digest_of(getattr(model_config.hf_config, "quantization_config", None)),
        "options": digest_of({name: options[name] for name in _OPTIONS if name in options}),
        # On such hosts the post-load step packs weights for matrix instructions, under the same names and shapes.
        "packing": "amx" if not torch.cuda.is_available() and cpu_has_amx_support() else "",
    }
    return {name: value for name, value in found.items() if value}
