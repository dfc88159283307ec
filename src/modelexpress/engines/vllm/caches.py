"""The caches of a vLLM worker: which they are, and where vLLM keeps them."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from modelexpress.engines.caches import WorkerCaches, bring_caches
from modelexpress.engines.vllm.identity import device_index
from modelexpress.engines.vllm.place import node_rank
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

_TORCH_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def bring_caches_of(vllm_config: Any, weights: Callable[[], SourceIdentity], settings: Settings) -> None:
    """Complete the caches of the engine that this process is a worker of, and share them. Never raises.

    Args:
        vllm_config: vLLM's configuration as a whole.
        weights: Makes the identity of the engine's weights.
        settings: Whether caches are transferred at all.
    """

    def describe() -> WorkerCaches:
        index = device_index()
        return WorkerCaches(
            weights(),
            vllm_config.compute_hash(),  # covers whatever decides the compiled code
            cache_variables(vllm_config, os.environ),
            node_rank(vllm_config.parallel_config),
            first=not index,
            device=index,
        )

    bring_caches(describe, settings)


def cache_variables(vllm_config: Any, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say where caches are, as vLLM sets them once it compiles.

    Source: `compilation/decorators.py` and `compilation/compiler_interface.py` of vLLM 0.32.

    Args:
        vllm_config: vLLM's configuration as a whole.
        environ: Variables of this process. Importing torch may have put a folder among temporary files there, as if
            somebody had asked for it.
    """
    from vllm import envs
    from vllm.config import CompilationMode

    found = {**environ, "VLLM_CACHE_ROOT": envs.VLLM_CACHE_ROOT}
    compilation = vllm_config.compilation_config
    if envs.VLLM_USE_AOT_COMPILE:
        found.pop(_TORCH_FOLDER, None)
    elif compilation.mode == CompilationMode.VLLM_COMPILE:
        found.pop(_TORCH_FOLDER, None)
        if compilation.cache_dir:
            found[_TORCH_FOLDER] = compilation.cache_dir
    return found
