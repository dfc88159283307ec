"""Sharing an engine's weights in the background: it never delays the engine, and never breaks it."""

import logging
import threading

import torch

from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.publish import publish
from modelexpress.weights.settle import settle

logger = logging.getLogger(__name__)


def share_in_background(
    tensors: dict[str, torch.Tensor], identity: SourceIdentity, rank: int, worker: Worker, settings: Settings
) -> threading.Thread | None:
    """Make a worker a source of tensors whose values are final now, whatever their owners do with them later.

    Tensors in host memory move to where other processes can read them before this returns; digests are computed, and
    the registry is told, in a thread that ends by itself. For device memory that is done at once: it takes
    milliseconds, and what other threads do on a device disturbs an engine that captures graphs.

    Args:
        tensors: By name.
        identity: What they are.
        rank: Of this worker within its replica.
        worker: Of this process.
        settings: Sizes and timeouts.

    Returns:
        The thread; None where there is nothing left to do.
    """
    try:
        settle(catalogue(tensors))
    except ModelExpressError as error:
        logger.warning("not becoming a source of '%s': %s", identity.model_name, error)
        return None
    # The engine may give its parameters other memory: these keep what they have.
    kept = {name: tensor.detach() for name, tensor in tensors.items()}
    if any(tensor.is_cuda for tensor in kept.values()):
        _share(kept, identity, rank, worker, settings)
        return None
    thread = threading.Thread(
        target=_share, args=(kept, identity, rank, worker, settings), name="mx-sharing", daemon=True
    )
    thread.start()
    return thread


def _share(
    tensors: dict[str, torch.Tensor], identity: SourceIdentity, rank: int, worker: Worker, settings: Settings
) -> None:
    try:
        publication = publish(tensors, identity, rank, worker=worker, settings=settings)
    except ModelExpressError as error:
        logger.warning("not becoming a source of '%s': %s", identity.model_name, error)
    else:
        logger.info("'%s' can be read as source %s", identity.model_name, publication.source_id)
