"""The loader that SGLang makes for `--load-format remote_instance` with the backend `modelexpress`."""

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from modelexpress.engines.caches import WorkerCaches, bring_caches
from modelexpress.engines.identity import digest_of
from modelexpress.engines.model_load import ModelLoad, PeerLoadFailed
from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.sglang.identity import compile_options, identity_of, rank_of_worker
from modelexpress.engines.sglang.native import NativeLoader
from modelexpress.engines.sglang.place import place_of
from modelexpress.engines.sglang.suitability import unsuitable, unsuitable_model
from modelexpress.engines.sglang.transport import with_transport
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

PACKAGES = ("sglang.srt.layers", "sglang.srt.models", "sglang.srt.hardware_backend")
"""Where the objects come from that hidden tensors and values hang on."""


class MxModelLoader:
    """Takes the weights from a peer where there is one, else lets SGLang's own loader do it; then becomes a source.

    Args:
        load_config: SGLang's. Of `--modelexpress-config` it has `url`, HOST:PORT of the registry instead of the one in
            the environment, and `transport`.
    """

    def __init__(self, load_config: Any) -> None:
        self._load_config = load_config

    def load_model(self, *, model: torch.nn.Module, model_config: Any, device_config: Any) -> torch.nn.Module:
        """Return the model with its weights in place and processed.

        Args:
            model: As SGLang has made it: not filled, not processed. What is returned may be another one.
            model_config: SGLang's.
            device_config: SGLang's.
        """
        from sglang.srt.runtime_context import get_context

        native = NativeLoader(self._load_config, model_config, device_config)
        options = get_context().resolved_server_args_dict()
        settings = settings_of(self._load_config, options)
        device = max(device_config.gpu_id or 0, 0)
        weights = functools.cache(lambda: identity_of(model_config, self._load_config, settings))
        bring_caches(lambda: caches_of(weights(), options, device), settings)
        if (reason := unsuitable(options, settings) or unsuitable_model(model)) is not None:
            logger.warning("loading natively, and not becoming a source of weights: %s", reason)
            native.fill(model)
            return model
        worker = process_worker(device, settings)
        load = ModelLoad(weights(), rank_of_worker(), settings, worker, PACKAGES)
        return load_or_fill(load, model, native)


def caches_of(weights: SourceIdentity, options: Mapping[str, Any], device: int) -> WorkerCaches:
    """Return what the caches of the engine that this process is a worker of are.

    Args:
        weights: The identity of the engine's weights.
        options: Those of the engine, as it has resolved them.
        device: Index of the accelerator that this process drives.
    """
    from sglang.srt.runtime_context import get_parallel

    place = place_of(get_parallel())
    configuration = digest_of([*sorted(weights.extra_parameters.items()), *compile_options(options)])
    return WorkerCaches(weights, configuration, _variables(), place.node_rank, place.first, device)


def load_or_fill(load: ModelLoad, model: torch.nn.Module, native: NativeLoader) -> torch.nn.Module:
    """Process a model that is not filled, then receive all of it; else fill one natively, and share that."""
    if load.has_source():
        load.prepare(model)
        try:
            _process(model, native)
            load.receive(model)
            return model
        except PeerLoadFailed as error:
            logger.warning("loading natively: %s", error)
        _give_memory_back(model)
        model = native.make()
    load.prepare(model)
    native.fill(model)
    load.share_processed(model)
    return model


def settings_of(load_config: Any, options: Mapping[str, Any]) -> Settings:
    """Return the settings of the environment, with those of the engine's configuration in their place.

    Args:
        load_config: SGLang's.
        options: Those of the engine, as it has resolved them.
    """
    return with_transport(Settings.read().asking(load_config.modelexpress_url), load_config, options)


def _variables() -> dict[str, str]:
    """Return the variables that say where caches are, with SGLang's own defaults."""
    from sglang.srt.environ import envs

    return {**os.environ, "DG_JIT_CACHE_DIR": os.path.expanduser(envs.SGLANG_DG_CACHE_DIR.get())}


def _process(model: torch.nn.Module, native: NativeLoader) -> None:
    try:
        native.process(model)
    except Exception as error:  # whatever the engine cannot do with weights that are not there
        raise PeerLoadFailed(f"the post-load step cannot run before the weights are there: {error}") from error


def _give_memory_back(model: torch.nn.Module) -> None:
    """Free the weights of a model that others still refer to: a second one must have room beside it.

    Its buffers stay: models of a process share some of them.
    """
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
