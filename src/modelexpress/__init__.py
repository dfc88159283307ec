"""ModelExpress gets weights and compiled kernels onto accelerators from wherever a copy already lives.

The public API is below; each name is imported when it is first used, so that importing this package costs little
and needs neither torch nor grpc.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelexpress.client import AsyncClient, Client
    from modelexpress.engines.trtllm.publisher import MxTrtllmSourcePublisher
    from modelexpress.engines.trtllm.target import MxTrtllmTargetLoader, create_trtllm_from_mx
    from modelexpress.errors import ModelExpressError
    from modelexpress.identity import BackendFramework, SourceIdentity, SourceType
    from modelexpress.memory.cuda_arena import CudaArena
    from modelexpress.peer import Publication, Worker
    from modelexpress.settings import Settings
    from modelexpress.weights.foresee import LoadPlan, plan, plan_folder
    from modelexpress.weights.load import load
    from modelexpress.weights.publish import publish
    from modelexpress.weights.pull_folder import pull_folder
    from modelexpress.weights.report import LoadReport
    from modelexpress.weights.serve_folder import publish_folder

__all__ = [
    "AsyncClient",
    "BackendFramework",
    "Client",
    "CudaArena",
    "LoadPlan",
    "LoadReport",
    "ModelExpressError",
    "MxTrtllmSourcePublisher",
    "MxTrtllmTargetLoader",
    "Publication",
    "Settings",
    "SourceIdentity",
    "SourceType",
    "Worker",
    "create_trtllm_from_mx",
    "load",
    "plan",
    "plan_folder",
    "publish",
    "publish_folder",
    "pull_folder",
]

_HOMES = {
    "AsyncClient": "client",
    "BackendFramework": "identity",
    "Client": "client",
    "CudaArena": "memory.cuda_arena",
    "LoadPlan": "weights.foresee",
    "LoadReport": "weights.report",
    "ModelExpressError": "errors",
    "MxTrtllmSourcePublisher": "engines.trtllm.publisher",
    "MxTrtllmTargetLoader": "engines.trtllm.target",
    "Publication": "peer",
    "Settings": "settings",
    "SourceIdentity": "identity",
    "SourceType": "identity",
    "Worker": "peer",
    "create_trtllm_from_mx": "engines.trtllm.target",
    "load": "weights.load",
    "plan": "weights.foresee",
    "plan_folder": "weights.foresee",
    "publish": "weights.publish",
    "publish_folder": "weights.serve_folder",
    "pull_folder": "weights.pull_folder",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modelexpress' has no attribute {name!r}")
    value = getattr(import_module(f"modelexpress.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
