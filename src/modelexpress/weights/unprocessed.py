"""Weights as they were before an engine's post-load step, offered while the engine goes on and takes that step.

The step makes new tensors, which does no harm here: what is offered keeps its memory. It also writes into tensors,
into small ones (scales) most of all, so of those copies are offered. What it writes into large ones is found out, and
so is how much memory of a device is kept for what the engine has replaced: the engine needs that more than others do.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modelexpress.identity import SourceIdentity
from modelexpress.memory import Region
from modelexpress.peer import Material, Publication, PublicationState, Worker
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.transfer.seal import seal
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.parting import SMALL_BYTES
from modelexpress.weights.rank_tensors import every_part, rank_tensors
from modelexpress.weights.settle import settle

logger = logging.getLogger(__name__)

_SCARCE = "cuda"
"""Devices of this type have no memory to spare. Host memory is kept: there is more of it, and nothing waits for it."""
_MOST_REPLACED = 0.1
"""Of the model's own bytes that are offered in scarce memory, the part that may be kept for others alone."""


@dataclass(frozen=True)
class UnprocessedSource:
    """What is offered, and what it was when it was offered.

    Args:
        publication: Ends with `close`, or when something of it was changed.
        manifest: Names and digests.
        regions: The memory.
        model: Whose tensors they were.
        scarce: Bytes of the model's own that are offered in scarce memory, by the address of their storage.
    """

    publication: Publication
    manifest: Manifest
    regions: tuple[Region, ...]
    model: weakref.ref[torch.nn.Module]
    scarce: Mapping[int, int]

    def after_processing(self) -> tuple[str, ...]:
        """Look, after the post-load step, whether everything is as it was; else this is a source no longer.

        Targets would find out by themselves, and refuse what they got, but only after it has travelled. It is a source
        no longer, either, where the step has replaced more than a tenth of what is offered in device memory.

        Returns:
            The names of tensors that were changed.
        """
        if self.publication.state is PublicationState.CLOSED:
            return ()  # and the memory may be gone
        changed = self._changed()
        if changed:
            self._withdraw(f"wrote into {len(changed)} of its tensors, such as '{changed[0]}'")
        elif (replaced := self._replaced()) > _MOST_REPLACED * (total := sum(self.scarce.values())):
            self._withdraw(
                f"replaced {replaced / 1e9:.2f} of the {total / 1e9:.2f} GB that it offers in device memory, "
                "which would be kept for other replicas alone"
            )
        return changed

    def _changed(self) -> tuple[str, ...]:
        listed = self.manifest
        if any(region.device is not None for region in self.regions):
            torch.cuda.synchronize()  # what the step has enqueued may still write
        now = seal(listed.tensors, self.regions, scope=listed.scope, chunk_bytes=listed.chunk_bytes)
        chunks = np.flatnonzero(now.digests != listed.digests)
        if not len(chunks):
            return ()
        owners = np.searchsorted(listed.chunk_starts, chunks, side="right") - 1
        return tuple(listed.names[position] for position in np.unique(owners).tolist())

    def _replaced(self) -> int:
        """Return the bytes in scarce memory that no parameter or buffer of the model uses any longer."""
        model = self.model()
        own = _bytes_by_storage(every_part(model).values()) if model is not None else {}
        return sum(nbytes for address, nbytes in self.scarce.items() if address not in own)

    def _withdraw(self, reason: str) -> None:
        logger.warning(
            "source %s is withdrawn: the post-load step %s; this model must be offered after that step, by a loader "
            "that takes it so",
            self.publication.source_id,
            reason,
        )
        self.publication.close()


def offer_unprocessed(
    model: torch.nn.Module,
    identity: SourceIdentity,
    rank: int = 0,
    *,
    worker: Worker,
    tensors: Mapping[str, torch.Tensor] | None = None,
    settings: Settings | None = None,
) -> UnprocessedSource:
    """Make this process a source of a model's tensors as they are now, whatever is done to the model afterwards.

    When this returns, digests are computed: what is written later can never be taken for what was offered. Targets
    fill `rank_tensors` of their own model with `load`, before they process it as this process does.

    Args:
        model: What is in host memory moves to where other processes can read it; its tensors stay the same objects.
        identity: What the weights are; targets with an equal identity get them.
        rank: Of this worker within its replica.
        worker: Of this process.
        tensors: What is offered of the model, by name; None: `rank_tensors(model)`.
        settings: Sizes and timeouts; read from the environment when None.

    Raises:
        UnsupportedModel: A tensor cannot be offered.
        ConfigurationError: The worker is closed, or offers this identity already.
        TransportError: The memory cannot be offered.

    Example:
        >>> source = offer_unprocessed(model, identity, worker=worker)  # doctest: +SKIP
        >>> process(model)  # doctest: +SKIP
        >>> source.after_processing()  # doctest: +SKIP
        ()
    """
    settings = settings or Settings.read()
    tensors = rank_tensors(model) if tensors is None else tensors
    settle(catalogue(every_part(model)))
    # The engine may give its parameters other memory: these keep what they have.
    offered = {
        name: tensor.detach() if tensor.nbytes > SMALL_BYTES else tensor.detach().clone()
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in offered.values()):
        torch.cuda.synchronize()  # what the engine has enqueued is part of the weights, and so are these copies
    settled = settle(catalogue(offered))
    manifest = seal(settled.tensors, settled.regions, scope=Scope.MODULE, chunk_bytes=settings.chunk_bytes)
    material = Material(identity, rank, manifest, settled.regions, (settled.owners, offered))
    own = [tensor for tensor in offered.values() if tensor.nbytes > SMALL_BYTES]
    scarce = _bytes_by_storage(tensor for tensor in own if tensor.device.type == _SCARCE)
    return UnprocessedSource(worker.publish(material), manifest, settled.regions, weakref.ref(model), scarce)


def _bytes_by_storage(tensors: Iterable[torch.Tensor]) -> Mapping[int, int]:
    found: Counter[int] = Counter()
    for tensor in tensors:
        found[tensor.untyped_storage().data_ptr()] += tensor.nbytes
    return found
