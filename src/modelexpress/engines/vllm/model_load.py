"""One load of one model by one vLLM worker: from a peer or natively, and what becomes of it afterwards."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modelexpress.engines.caches import bring_caches
from modelexpress.engines.model_load import ModelLoad, PeerLoadFailed
from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.state import tensors_of, values_of
from modelexpress.engines.vllm.identity import Layout, device_index, identity_of, rank_of
from modelexpress.settings import Settings
from modelexpress.weights.parting import part_small

logger = logging.getLogger(__name__)

_TORCH_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

PACKAGES = ("vllm.model_executor", "vllm.v1.attention", "vllm.attention")
"""Where the objects come from that hidden tensors and values hang on."""


@dataclass
class VllmLoad(ModelLoad):
    """What is known of a load while it runs.

    Args:
        layout: At which point of loading the weights are shared.
    """

    layout: Layout = Layout.PROCESSED

    @classmethod
    def of(cls, vllm_config: Any, model_config: Any, prefix: str, layout: Layout, registry: str | None) -> "VllmLoad":
        """Return the load of a model of the engine that this process is a worker of; its caches are there then."""
        settings = Settings.read()
        if registry:
            settings = settings.model_copy(update={"registry": Settings(registry=registry).registry})
        identity = identity_of(vllm_config, model_config, prefix, layout, settings)
        index = device_index()
        worker = process_worker(index, settings)
        load = cls(identity, rank_of(vllm_config), settings, worker, PACKAGES, layout=layout)
        # The engine's hash covers whatever decides the compiled code.
        variables = cache_variables(vllm_config, os.environ)
        bring_caches(identity, vllm_config.compute_hash(), settings, variables, worker=None if index else worker)
        return load

    def fill(self, model: torch.nn.Module, natively: Callable[[], None]) -> None:
        """Fill a model that has not been processed: from a peer, else natively, and share it as it is then."""
        self.prepare(model)
        try:
            self.receive(model)
        except PeerLoadFailed as error:
            logger.info("loading natively: %s", error)
            natively()
            self.share(tensors_of(model, PACKAGES), values_of(model, PACKAGES))
        # The post-load step comes next. What is offered is what was there before it.
        part_small(tensors_of(model, PACKAGES).values())


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
