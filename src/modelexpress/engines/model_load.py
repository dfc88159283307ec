"""One load of one model by one worker of an engine, whose post-load step changes the weights.

Source and target both run that step: a target runs it on memory that is not filled yet, and then receives every tensor
as the step left it at the source.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from modelexpress.client import Client
from modelexpress.engines.restoring import restored_on_error
from modelexpress.engines.sharing import share_in_background
from modelexpress.engines.state import Values, apply_changes, changes, room_for_changes, tensors_of, values_of
from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.candidates import find_candidates
from modelexpress.weights.load import load

logger = logging.getLogger(__name__)

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
        settings: The registry, and timeouts.
        worker: Makes this process a source; None: it cannot be one.
        packages: Where the objects come from that hidden tensors and values hang on, as prefixes of module names.
    """

    identity: SourceIdentity
    rank: int
    settings: Settings
    worker: Worker | None
    packages: tuple[str, ...]
    _before: Values = field(default_factory=dict)
    _bytes_before: int = 0

    def __post_init__(self) -> None:
        name, source_id = self.identity.model_name, self.identity.source_id
        logger.info("'%s' rank %d is source %s, asking %s", name, self.rank, source_id, self.settings.registry)

    def has_source(self) -> bool:
        """Return whether a peer has the weights; not, with the reason logged, where the registry cannot be asked."""
        try:
            with Client(self.settings.registry, timeout=self.settings.answer_timeout) as client:
                if find_candidates(client, self.identity, self.rank):
                    return True
            logger.info("no peer has the weights yet: this replica loads natively, and becomes the first source")
        except ModelExpressError as error:
            logger.warning("loading natively: %s", error)
        return False

    def prepare(self, model: torch.nn.Module) -> None:
        """Note the values of a model as it was made: before it is filled or processed."""
        self._before = values_of(model, self.packages)
        self._bytes_before = _total_bytes(tensors_of(model, self.packages))

    def receive(self, model: torch.nn.Module) -> None:
        """Fill a model that has been processed.

        Where this fails, parameters hold nothing of use. What is computed when a model is made, which hangs on it as
        buffers or in hidden tensors, is as it was: it is computed once, at times for all models of a process.

        Raises:
            PeerLoadFailed: No peer delivered all of it.
        """
        tensors, room = tensors_of(model, self.packages), room_for_changes(self._before)
        wanted = {**tensors, **room}
        try:
            with restored_on_error(_computed(model, tensors.values())):
                report = load(wanted, self.identity, self.rank, worker=self.worker, keep=False, settings=self.settings)
            (carrier,) = room
            apply_changes(model, self.packages, wanted[carrier])
        except ModelExpressError as error:
            raise PeerLoadFailed(str(error)) from error
        logger.info("the weights came from a peer:\n%s", report)

    def share_processed(self, model: torch.nn.Module) -> None:
        """Share a model that was loaded natively and has been processed."""
        tensors, after = tensors_of(model, self.packages), values_of(model, self.packages)
        if _total_bytes(tensors) < _LEAST_LEFT * self._bytes_before:
            logger.warning("not becoming a source: the post-load step put the weights where they cannot be read")
            return
        self.share(tensors, after)

    def share(self, tensors: dict[str, torch.Tensor], after: Values) -> None:
        """Share tensors whose values are final, with the model's other values, where this process can be a source."""
        if self.worker is None:
            return
        try:
            carried = changes(self._before, after)
        except ModelExpressError as error:
            logger.warning("not becoming a source: %s", error)
            return
        share_in_background({**tensors, **carried}, self.identity, self.rank, self.worker, self.settings)


def _computed(model: torch.nn.Module, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the buffers that checkpoints leave out, and of host memory everything that is no parameter."""
    left_out = {
        id(buffer): buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }
    on_host = {id(t): t for t in tensors if t.device.type == "cpu" and not isinstance(t, torch.nn.Parameter)}
    return list({**left_out, **on_host}.values())


def _total_bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in tensors.values()}.values())
