"""One load of one model by one vLLM worker: from a peer or natively, and what becomes of it afterwards."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from modelexpress.client import Client
from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.sharing import share_in_background
from modelexpress.engines.state import (
    Values,
    apply_changes,
    changes,
    room_for_changes,
    tensors_of,
    values_of,
)
from modelexpress.engines.vllm.caches import bring_caches
from modelexpress.engines.vllm.identity import Layout, device_index, identity_of, rank_of
from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.candidates import find_candidates
from modelexpress.weights.load import load

logger = logging.getLogger(__name__)

PACKAGES = ("vllm.model_executor", "vllm.v1.attention", "vllm.attention")
"""Where the objects come from that hidden tensors and values hang on."""


_LEAST_LEFT = 0.4
"""Of the bytes of a model that are still tensors after the post-load step, where it has not hidden them in objects."""


class PeerLoadFailed(Exception):
    """The weights cannot be taken from a peer; the model that was begun must not be used."""


@dataclass
class ModelLoad:
    """What is known of a load while it runs.

    Args:
        identity: Of the weights.
        rank: Of this worker within its replica.
        layout: At which point of loading the weights are shared.
        settings: The registry, and timeouts.
        worker: Makes this process a source; None: it cannot be one.
    """

    identity: SourceIdentity
    rank: int
    layout: Layout
    settings: Settings
    worker: Worker | None
    _before: Values = field(default_factory=dict)
    _bytes_before: int = 0

    @classmethod
    def of(cls, vllm_config: Any, model_config: Any, prefix: str, layout: Layout, registry: str | None) -> "ModelLoad":
        """Return the load of a model of the engine that this process is a worker of."""
        settings = Settings.read()
        settings = settings.model_copy(update={"registry": registry or settings.registry})
        identity = identity_of(vllm_config, model_config, prefix, layout, settings)
        rank, index = rank_of(vllm_config), device_index()
        logger.info(
            "'%s' rank %d is source %s, asking %s", identity.model_name, rank, identity.source_id, settings.registry
        )
        bring_caches(vllm_config, identity, settings, first_of_host=index == 0)
        return cls(identity, rank, layout, settings, process_worker(index, settings))

    def has_source(self) -> bool:
        """Return whether a peer has the weights; not, with the reason logged, where the registry cannot be asked."""
        try:
            with Client(self.settings.registry, timeout=max(self.settings.source_query_timeout, 0.1)) as client:
                if find_candidates(client, self.identity, self.rank):
                    return True
            logger.info("no peer has the weights yet: this replica loads natively, and becomes the first source")
        except ModelExpressError as error:
            logger.warning("loading natively: %s", error)
        return False

    def fill(self, model: torch.nn.Module, natively: Callable[[], None]) -> None:
        """Fill a model that has not been processed: from a peer, else natively, and share it as it is then."""
        before = values_of(model, PACKAGES)
        tensors = tensors_of(model, PACKAGES)
        wanted = {**tensors, **room_for_changes(before)}
        try:
            report = load(wanted, self.identity, self.rank, settings=self.settings, worker=self.worker)
        except ModelExpressError as error:
            logger.info("loading natively: %s", error)
            natively()
            carried = changes(before, before, values_of(model, PACKAGES))
            self._share({**tensors_of(model, PACKAGES), **carried})
        else:
            self._apply(model, before, wanted)
            logger.info("the weights came from a peer:\n%s", report)

    def prepare(self, model: torch.nn.Module) -> None:
        """Note the values of a model before the engine's post-load step."""
        self._before = values_of(model, PACKAGES)
        self._bytes_before = _total_bytes(tensors_of(model, PACKAGES))

    def receive(self, model: torch.nn.Module) -> None:
        """Fill a model that has been processed.

        Raises:
            PeerLoadFailed: No peer delivered all of it.
        """
        names = values_of(model, PACKAGES)
        wanted = {**tensors_of(model, PACKAGES), **room_for_changes(names)}
        try:
            report = load(wanted, self.identity, self.rank, settings=self.settings, worker=self.worker)
        except ModelExpressError as error:
            raise PeerLoadFailed(str(error)) from error
        self._apply(model, names, wanted)
        logger.info("the weights came from a peer:\n%s", report)

    def share_processed(self, model: torch.nn.Module) -> None:
        """Share a model that was loaded natively and has been processed."""
        tensors, after = tensors_of(model, PACKAGES), values_of(model, PACKAGES)
        if _total_bytes(tensors) < _LEAST_LEFT * self._bytes_before:
            logger.warning("not becoming a source: the post-load step put the weights where they cannot be read")
            return
        self._share({**tensors, **changes(after, self._before, after)})

    def _apply(self, model: torch.nn.Module, names: Values, received: dict[str, torch.Tensor]) -> None:
        (carrier,) = room_for_changes(names)
        apply_changes(model, PACKAGES, names, received[carrier])

    def _share(self, tensors: dict[str, torch.Tensor]) -> None:
        if self.worker is not None:
            share_in_background(tensors, self.identity, self.rank, self.worker, self.settings)


def _total_bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in tensors.values()}.values())
