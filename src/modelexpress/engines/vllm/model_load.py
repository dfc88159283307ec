"""One load of one model by one vLLM worker: from a peer or natively, and what becomes of it afterwards."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from modelexpress.engines.model_load import ModelLoad, PeerLoadFailed
from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.state import tensors_of, values_of
from modelexpress.engines.vllm.identity import Layout, device_index, identity_of, rank_of
from modelexpress.settings import Settings
from modelexpress.weights.parting import part_small

logger = logging.getLogger(__name__)

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
    def of(cls, vllm_config: Any, model_config: Any, prefix: str, layout: Layout, settings: Settings) -> "VllmLoad":
        """Return the load of a model of the engine that this process is a worker of."""
        identity = identity_of(vllm_config, model_config, prefix, layout, settings)
        worker = process_worker(device_index(), settings)
        return cls(identity, rank_of(vllm_config), settings, worker, PACKAGES, layout=layout)

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
