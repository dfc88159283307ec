"""SGLang's own loader, in the steps that this package needs one by one."""

import dataclasses
from typing import Any

import torch


class NativeLoader:
    """Makes, fills and processes one model as SGLang does without this package.

    Args:
        load_config: SGLang's; its format is this package's, so the checkpoint's own is found out.
        model_config: SGLang's, of the model.
        device_config: SGLang's.
    """

    def __init__(self, load_config: Any, model_config: Any, device_config: Any) -> None:
        from sglang.srt.configs.load_config import LoadFormat
        from sglang.srt.model_loader.loader import DefaultModelLoader

        self._loader: Any = DefaultModelLoader(dataclasses.replace(load_config, load_format=LoadFormat.AUTO))
        self._model_config = model_config
        self._device_config = device_config
        self._device = torch.device(device_config.device)

    def make(self) -> torch.nn.Module:
        """Return a model whose weights are not filled."""
        model: torch.nn.Module = self._loader.initialize_model_for_startup(
            model_config=self._model_config, device_config=self._device_config
        )
        return model

    def fill(self, model: torch.nn.Module) -> None:
        """Fill a model from its checkpoint, and process it."""
        from sglang.srt.model_loader.utils import set_default_torch_dtype

        with set_default_torch_dtype(self._model_config.dtype):
            weights = self._loader._get_all_weights(self._model_config, model)
            self._loader.load_weights_and_postprocess(model, weights, self._device)

    def process(self, model: torch.nn.Module) -> None:
        """Process a model as it is: what its own filling does at its end, then the engine's post-load step."""
        from sglang.srt.model_loader.loader import post_load_weights
        from sglang.srt.model_loader.utils import set_default_torch_dtype

        with set_default_torch_dtype(self._model_config.dtype):
            post_load_weights(model)
            self._loader.postprocess_weights(model, self._device)
