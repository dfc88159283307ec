"""What a vLLM worker's weights are: an identity from the engine's configuration, and the rank within the replica."""

from enum import Enum
from typing import Any

import torch

from modelexpress.engines.identity import digest_of, gpu_architecture, revision_of
from modelexpress.identity import BackendFramework, SourceIdentity, package_version
from modelexpress.settings import Settings


class Layout(Enum):
    """At which point of loading the weights are shared."""

    LOADED = "loaded"
    """As the model's own loader leaves them, before the engine's post-load step: each side runs that itself."""
    PROCESSED = "processed"
    """After the post-load step, which a target runs on memory that is not filled yet."""


def layout_here() -> Layout:
    """Return the layout in which weights stay in memory on this platform.

    On CPUs the post-load step packs linear layers into objects that cannot be read, and leaves empty weights.
    """
    from vllm.platforms import current_platform

    return Layout.LOADED if current_platform.is_cpu() else Layout.PROCESSED


def identity_of(vllm_config: Any, model_config: Any, prefix: str, layout: Layout, settings: Settings) -> SourceIdentity:
    """Return the identity of the weights of one model of the engine.

    Args:
        vllm_config: vLLM's configuration as a whole.
        model_config: The model that is loaded: the engine's, or the draft of speculative decoding.
        prefix: Of the model's layers.
        layout: At which point the weights are shared.
        settings: May name the revision.
    """
    import vllm

    parallel = vllm_config.parallel_config
    experts = parallel.enable_expert_parallel
    return SourceIdentity(
        mx_version=package_version(),
        model_name=str(model_config.model),
        backend_framework=BackendFramework.VLLM,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        expert_parallel_size=parallel.tensor_parallel_size * parallel.data_parallel_size if experts else 0,
        dtype=str(model_config.dtype).removeprefix("torch."),
        quantization=str(model_config.quantization or ""),
        revision=revision_of(model_config.model, model_config.revision, model_config.hf_config, settings),
        backend_framework_version=str(vllm.__version__),
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda or "",
        gpu_arch=gpu_architecture(),
        extra_parameters=_parameters(vllm_config, model_config, prefix, layout),
    )


def rank_of(vllm_config: Any) -> int:
    """Return the rank of this worker within its replica: of two that hold the same weights, it is the same."""
    from vllm.distributed.parallel_state import get_dp_group, get_pp_group, get_tp_group

    tensor, pipeline = get_tp_group(), get_pp_group()
    rank = int(pipeline.rank_in_group * tensor.world_size + tensor.rank_in_group)
    if vllm_config.parallel_config.enable_expert_parallel:
        rank += int(get_dp_group().rank_in_group * pipeline.world_size * tensor.world_size)
    return rank


def device_index() -> int:
    """Return the number of this worker on its host, which is that of its accelerator."""
    from vllm.distributed.parallel_state import get_world_group

    return int(get_world_group().local_rank)


def _parameters(vllm_config: Any, model_config: Any, prefix: str, layout: Layout) -> dict[str, str]:
    hf_config = model_config.hf_config
    draft = vllm_config.speculative_config
    found = {
        "layout": layout.value,
        "architectures": ",".join(getattr(hf_config, "architectures", None) or []),
        "role": "draft" if draft is not None and model_config is draft.draft_model_config else "",
        "prefix": prefix,
        # Of options that change it, too: tables that are computed when a model is made travel with its weights.
        "configuration": digest_of(hf_config),
        "quantization_config": digest_of(getattr(hf_config, "quantization_config", None)),
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
    }
    if layout is Layout.PROCESSED:
        # Which kernels the post-load step prepares for depends on all of the configuration.
        found["engine"] = vllm_config.compute_hash()
    return {name: value for name, value in found.items() if value}
