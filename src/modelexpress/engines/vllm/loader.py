"""The loader that vLLM makes for `--load-format modelexpress` and `mx`."""

import dataclasses
import logging
from typing import Any

import torch
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from modelexpress.engines.messages import show_in_log_of
from modelexpress.engines.model_load import PeerLoadFailed
from modelexpress.engines.vllm.caches import bring_caches_of
from modelexpress.engines.vllm.identity import Layout, identity_of, layout_here
from modelexpress.engines.vllm.model_load import VllmLoad
from modelexpress.engines.vllm.suitability import unsuitable, unsuitable_model
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

_URL = "url"
"""Key of --model-loader-extra-config that names the registry, in place of MODEL_EXPRESS_URL."""


class MxModelLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Takes the weights from a peer where there is one, else lets vLLM's own loader do it; then becomes a source.

    Args:
        load_config: vLLM's. What is in its extra configuration goes to vLLM's loader, but for `url`.
    """

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        show_in_log_of("vllm")
        extra = dict(load_config.model_loader_extra_config or {})
        self._registry: str | None = extra.pop(_URL, None)
        self._native = DefaultModelLoader(
            dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=extra)
        )
        self._load: VllmLoad | None = None

    def download_model(self, model_config: Any) -> None:
        """Let vLLM download the checkpoint."""
        self._native.download_model(model_config)

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
        """Return the model with its weights in place and processed."""
        settings, layout = Settings.read().asking(self._registry), layout_here()
        if (reason := unsuitable(vllm_config, settings)) is not None:
            logger.warning("loading natively, and not becoming a source of weights: %s", reason)
        else:
            self._load = VllmLoad.of(vllm_config, model_config, prefix, layout, settings)
        load = self._load
        bring_caches_of(
            vllm_config,
            lambda: load.identity if load else identity_of(vllm_config, model_config, prefix, layout, settings),
            settings,
        )
        try:
            if self._load is not None and self._load.layout is Layout.PROCESSED:
                return self._load_processed(self._load, vllm_config, model_config, prefix)
            return self._load_in_steps(vllm_config, model_config, prefix)
        finally:
            self._load = None

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Fill a model that has not been processed; vLLM's own way calls this between making and processing one."""
        if self._load is not None and self._load.layout is Layout.LOADED:
            self._load.fill(model, lambda: self._native.load_weights(model, model_config))
            return
        if self._load is not None:
            self._load.prepare(model)
        self._native.load_weights(model, model_config)

    def _load_in_steps(self, vllm_config: Any, model_config: Any, prefix: str) -> torch.nn.Module:
        model: torch.nn.Module = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        return model

    def _load_processed(self, load: VllmLoad, vllm_config: Any, model_config: Any, prefix: str) -> torch.nn.Module:
        """Process a model that is not filled, then receive all of it; else load one natively, and share that."""
        layers = vllm_config.compilation_config.static_forward_context
        known = dict(layers)
        if load.has_source():
            try:
                return self._received(load, vllm_config, model_config, prefix)
            except PeerLoadFailed as error:
                logger.warning("loading natively: %s", error)
            # The layers of the model that failed are on the engine's list.
            layers.clear()
            layers.update(known)
        model = self._load_in_steps(vllm_config, model_config, prefix)
        load.share_processed(model)
        return model

    def _received(self, load: VllmLoad, vllm_config: Any, model_config: Any, prefix: str) -> torch.nn.Module:
        from vllm.model_executor.model_loader.utils import process_weights_after_loading
        from vllm.utils.torch_utils import set_default_torch_dtype

        device = torch.device(self.load_config.device or vllm_config.device_config.device)
        with set_default_torch_dtype(model_config.dtype):
            with device:
                model: torch.nn.Module = self.create_model(
                    vllm_config=vllm_config, model_config=model_config, prefix=prefix
                )
            if (reason := unsuitable_model(model)) is not None:
                raise PeerLoadFailed(reason)
            load.prepare(model)
            try:
                process_weights_after_loading(model, model_config, device)
            except Exception as error:  # whatever the engine cannot do with weights that are not there
                raise PeerLoadFailed(f"the post-load step cannot run before the weights are there: {error}") from error
            load.receive(model)
        return model.eval()
