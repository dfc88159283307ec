"""Live weights of TensorRT-LLM, from the parameters of one replica into those of another.

The names below are those that the engine imports. `_build_trtllm_identity` is looked up anew each time: the engine puts
one of its own in its place for the time of a call.
"""

from typing import Any

from modelexpress.engines.trtllm.live import LiveWeightLoader
from modelexpress.engines.trtllm.live_checkpoint import LiveCheckpointLoader
from modelexpress.engines.trtllm.live_publish import after_post_load, look_after_model, offer_model
from modelexpress.engines.trtllm.naming import live_identity
from modelexpress.engines.trtllm.probing import ProbingClient as MxClient
from modelexpress.identity import SourceIdentity

__all__ = [
    "MxClient",
    "MxLiveCheckpointLoader",
    "MxLiveWeightLoader",
    "after_post_load",
    "publish_from_worker",
    "publish_model_params",
]

_build_trtllm_identity = live_identity


def publish_model_params(model: Any) -> None:
    """Offer a model before its post-load step, where this worker is a source (`offer_model`). Never raises."""
    offer_model(model, _build)


def publish_from_worker(worker: Any) -> None:
    """See to the model of an engine that is up (`look_after_model`). Never raises."""
    look_after_model(worker, _build)


class MxLiveWeightLoader(LiveWeightLoader):
    """Fills a model from a peer (`LiveWeightLoader`)."""

    def __init__(self, mx_server: str | None = None) -> None:
        super().__init__(_build, mx_server)


class MxLiveCheckpointLoader(LiveCheckpointLoader):
    """Fills a model from a peer, or reads its checkpoint (`LiveCheckpointLoader`)."""

    def __init__(self, mx_server: str | None = None) -> None:
        super().__init__(_build, mx_server)


def _build(**fields: Any) -> SourceIdentity:
    return _build_trtllm_identity(**fields)
