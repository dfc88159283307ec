"""The engine's own loaders of checkpoints."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from modelexpress.errors import ConfigurationError

_CHECKPOINTS = "tensorrt_llm._torch.models.checkpoints"


def native(module: str, name: str) -> Any:
    """Return one of the engine's classes that have to do with checkpoints.

    Args:
        module: Within the engine's package of them, such as `hf.weight_loader`.
        name: Of the class.

    Raises:
        ConfigurationError: The engine is not installed. That one of its own imports fails is not this: such an
            ImportError is raised as it is.
    """
    path = f"{_CHECKPOINTS}.{module}"
    try:
        return getattr(import_module(path), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            "tensorrt_llm is not installed: this process can take weights from a peer, but not load a checkpoint itself"
        ) from error


def without_unknown(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an engine's arguments that a loader takes: `model` goes only to one that names it.

    A loader that takes any keyword hands it on to others, which may not.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if name in parameters or (takes_any and name != "model")}
