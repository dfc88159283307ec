"""Weights as they were before an engine's post-load step, offered while the engine goes on and takes that step.

The step makes new tensors, which does no harm here: what is offered keeps its memory. It also writes into tensors,
into small ones (scales) most of all, so of those copies are offered. What it writes into large ones is found out.
"""

import logging
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
from modelexpress.weights.rank_tensors import every_part
from modelexpress.weights.settle import settle

logger = logging.getLogger(__name__)

_COPIED_BYTES = 1 << 20
"""Tensors of no more bytes than this are offered as copies."""


@dataclass(frozen=True)
class UnprocessedSource:
    """What is offered, and what it was when it was offered.

    Args:
        publication: Ends with `close`, or when something of it was changed.
        manifest: Names and digests.
        regions: The memory.
    """

    publication: Publication
    manifest: Manifest
    regions: tuple[Region, ...]

    def after_processing(self) -> tuple[str, ...]:
        """Look, after the post-load step, whether everything is as it was; else this is a source no longer.

        Targets would find out by themselves, and refuse what they got, but only after it has travelled.

        Returns:
            The names of tensors that were changed.
        """
        if self.publication.state is PublicationState.CLOSED:
            return ()  # and the memory may be gone
        listed = self.manifest
        if any(region.device is not None for region in self.regions):
            torch.cuda.synchronize()  # what the step has enqueued may still write
        now = seal(listed.tensors, self.regions, scope=listed.scope, chunk_bytes=listed.chunk_bytes)
        chunks = np.flatnonzero(now.digests != listed.digests)
        if not len(chunks):
            return ()
        owners = np.searchsorted(listed.chunk_starts, chunks, side="right") - 1
        changed = tuple(listed.names[position] for position in np.unique(owners).tolist())
        logger.warning(
            "source %s is withdrawn: the post-load step wrote into %d of its tensors, such as '%s'; this model must "
            "be offered after that step, by a loader that takes it so",
            self.publication.source_id,
            len(changed),
            changed[0],
        )
        self.publication.close()
        return changed


def offer_unprocessed(
    model: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    identity: SourceIdentity,
    rank: int,
    *,
    worker: Worker,
    settings: Settings,
) -> UnprocessedSource:
    """Make this process a source of tensors as they are now, whatever is done to their model afterwards.

    When this returns, digests are computed: what is written later can never be taken for what was offered.

    Args:
        model: What is in host memory moves to where other processes can read it; its tensors stay the same objects.
        tensors: What is offered of it, by name (`rank_tensors`).
        identity: What they are.
        rank: Of this worker within its replica.
        worker: Of this process.
        settings: Sizes and timeouts.

    Raises:
        UnsupportedModel: A tensor cannot be offered.
        ConfigurationError: The worker is closed, or offers this identity already.
        TransportError: The memory cannot be offered.
    """
    settle(catalogue(every_part(model)))
    # The engine may give its parameters other memory: these keep what they have.
    offered = {
        name: tensor.detach() if tensor.nbytes > _COPIED_BYTES else tensor.detach().clone()
        for name, tensor in tensors.items()
    }
    if any(tensor.is_cuda for tensor in offered.values()):
        torch.cuda.synchronize()  # what the engine has enqueued is part of the weights, and so are these copies
    settled = settle(catalogue(offered))
    manifest = seal(settled.tensors, settled.regions, scope=Scope.MODULE, chunk_bytes=settings.chunk_bytes)
    material = Material(identity, rank, manifest, settled.regions, (settled.owners, offered))
    return UnprocessedSource(worker.publish(material), manifest, settled.regions)
