"""The checkpoint loader of live weights, as the engine is given one: a peer where there is one, else the checkpoint."""

import logging
from typing import Any

from modelexpress.engines.trtllm.live import LiveWeightLoader
from modelexpress.engines.trtllm.live_publish import BuildIdentity, note_checkpoint
from modelexpress.engines.trtllm.native import native, without_unknown
from modelexpress.engines.trtllm.presharded import mark_presharded
from modelexpress.engines.trtllm.roles import Role, role_of
from modelexpress.errors import ModelExpressError

logger = logging.getLogger(__name__)


class LiveCheckpointLoader:
    """What `LLM(checkpoint_loader=..., load_format=LoadFormat.PRESHARDED)` takes.

    Args:
        build: Makes the identity.
        mx_server: HOST:PORT of the registry, with or without a scheme; None takes it from the environment.
    """

    checkpoint_format = "mx-p2p"

    def __init__(self, build: BuildIdentity, mx_server: str | None = None) -> None:
        self.weight_loader = LiveWeightLoader(build, mx_server)
        self.weight_mapper: Any = None
        self._config_loader: Any = None
        self._preloaded = False

    def load_weights(
        self, checkpoint_dir: str, mapping: Any = None, model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Fill the model from a peer, else read the checkpoint.

        Args:
            checkpoint_dir: The checkpoint.
            mapping: The engine's.
            model: This rank's.
            **kwargs: For the engine's own loader, which gets those that it knows.

        Returns:
            An empty dictionary after a peer has filled the model; else the checkpoint's tensors, which are whole.

        Raises:
            ModelExpressError: MODEL_EXPRESS_TARGET=1, and no peer delivered.
        """
        self._preloaded = False
        role = role_of(self.weight_loader.settings)
        if role is Role.TARGET or (role is Role.FOUND_OUT and model is not None):
            try:
                found = self.weight_loader.load_weights(checkpoint_dir, mapping=mapping, model=model)
            except ModelExpressError as error:
                if role is Role.TARGET:
                    raise
                logger.info("reading the checkpoint instead: %s", error)
            except Exception as error:  # whatever it was, the checkpoint is there, and overwrites everything
                if role is Role.TARGET:
                    raise
                logger.warning("reading the checkpoint instead, because of a defect (%s)", type(error).__name__)
            else:
                self._preloaded = True
                return found
        return self._read(checkpoint_dir, mapping, model, kwargs)

    def is_weights_preloaded(self) -> bool:
        """Return whether a peer filled the model in the last load."""
        return self._preloaded

    def load_config(self, checkpoint_dir: str, **kwargs: Any) -> Any:
        """Return the engine's configuration of a checkpoint."""
        return self.config_loader.load(checkpoint_dir, **kwargs)

    @property
    def config_loader(self) -> Any:
        """The engine's own."""
        if self._config_loader is None:
            self._config_loader = self.get_default_config_loader()
        return self._config_loader

    def get_default_weight_loader(self) -> LiveWeightLoader:
        """Return what takes weights from a peer."""
        return self.weight_loader

    def get_default_config_loader(self) -> Any:
        """Return the engine's own."""
        return native("hf.config_loader", "HfConfigLoader")()

    def get_initialized_weight_mapper(self, model: Any, config: Any) -> Any:
        """Return the engine's mapper of the checkpoint's names to those of a model."""
        mappers = native("auto_mapper", "AutoCheckpointMapper")
        self.weight_mapper = mappers.get("HF", config.pretrained_config.architectures[0])
        self.weight_mapper.init_model_and_config(model, config)
        return self.weight_mapper

    def cleanup(self) -> None:
        """Let the mapper go."""
        mapper, self.weight_mapper = self.weight_mapper, None
        if hasattr(mapper, "cleanup"):
            mapper.cleanup()

    def _read(self, checkpoint_dir: str, mapping: Any, model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if model is not None:
            mark_presharded(model, False)  # the engine has marked it before it asked for weights
            note_checkpoint(model, str(checkpoint_dir), self.weight_loader.mx_server)
        read = native("hf.weight_loader", "HfWeightLoader")().load_weights
        found: dict[str, Any] = read(checkpoint_dir, mapping=mapping, **without_unknown(read, kwargs))
        return found
