"""TensorRT-LLM: checkpoints between nodes, live weights rank by rank, and the loader that it delegates to.

Each name is imported when it is first used: a target that only receives files needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelexpress.engines.trtllm.delegated import MxModelLoader
    from modelexpress.engines.trtllm.publisher import MxTrtllmSourcePublisher
    from modelexpress.engines.trtllm.target import MxTrtllmTargetLoader, create_trtllm_from_mx

__all__ = ["MxModelLoader", "MxTrtllmSourcePublisher", "MxTrtllmTargetLoader", "create_trtllm_from_mx"]

_HOMES = {
    "MxModelLoader": "delegated",
    "MxTrtllmSourcePublisher": "publisher",
    "MxTrtllmTargetLoader": "target",
    "create_trtllm_from_mx": "target",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modelexpress.engines.trtllm' has no attribute {name!r}")
    return getattr(import_module(f"modelexpress.engines.trtllm.{home}"), name)


def __dir__() -> list[str]:
    return __all__
