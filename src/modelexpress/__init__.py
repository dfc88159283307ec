"""ModelExpress gets weights and compiled kernels onto accelerators from wherever a copy already lives.

The public API is below; each name is imported when it is first used, so that importing this package costs little
and needs neither torch nor grpc.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelexpress import dwdp
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
    from modelexpress.weights.rank_tensors import rank_tensors
    from modelexpress.weights.report import LoadReport
    from modelexpress.weights.serve_folder import publish_folder
    from modelexpress.weights.unprocessed import UnprocessedSource, offer_unprocessed

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
    "UnprocessedSource",
    "Worker",
    "create_trtllm_from_mx",
    "dwdp",
    "load",
    "offer_unprocessed",
    "plan",
    "plan_folder",
    "publish",
    "publish_folder",
    "pull_folder",
    "rank_tensors",
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
    "UnprocessedSource": "weights.unprocessed",
    "Worker": "peer",
    "create_trtllm_from_mx": "engines.trtllm.target",
    "dwdp": "dwdp",
    "load": "weights.load",
    "offer_unprocessed": "weights.unprocessed",
    "plan": "weights.foresee",
    "plan_folder": "weights.foresee",
    "publish": "weights.publish",
    "publish_folder": "weights.serve_folder",
    "pull_folder": "weights.pull_folder",
    "rank_tensors": "weights.rank_tensors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modelexpress' has no attribute {name!r}")
    module = import_module(f"modelexpress.{home}")
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
