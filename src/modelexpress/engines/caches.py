"""The caches of compiled kernels of an engine's worker: brought before it compiles, shared once it is ready."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from modelexpress.artifacts.bringing import why_not
from modelexpress.artifacts.kinds import KINDS
from modelexpress.artifacts.late_usage import LateUsage
from modelexpress.artifacts.lifecycle import BroughtCaches, bring, share_when_ready
from modelexpress.engines.identity import processor_architecture
from modelexpress.engines.process_worker import process_worker
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

_begun: set[int] = set()
"""Processes that have begun: this one, and those that it was forked from."""


@dataclass(frozen=True)
class WorkerCaches:
    """What the caches of one worker are.

    Args:
        weights: The identity of the engine's weights.
        configuration: Digest of whatever decides the compiled code.
        environ: The variables that say where caches are, with the engine's own defaults.
        node_rank: Of this host within its replica.
        first: Whether this worker is the first one of its host, which shares what all of them compile.
        device: Index of the accelerator that this process drives.
    """

    weights: SourceIdentity
    configuration: str
    environ: Mapping[str, str]
    node_rank: int
    first: bool
    device: int


def bring_caches(describe: Callable[[], WorkerCaches], settings: Settings) -> None:
    """Complete this host's caches from a peer, and offer them to others when the engine is ready. Never raises.

    This does not depend on whether the weights can be shared. The engine is ready when MX_ARTIFACT_READY_URL says so.
    Of the ranks of a host one brings, and the others wait; the first one says what was used, and shares.

    Args:
        describe: Makes the description; called where caches are transferred at all, once in a process: what it has
            begun with another model, or with this one before, goes on.
        settings: Whether caches are transferred at all.
    """
    if os.getpid() in _begun:
        return
    _begun.add(os.getpid())
    if reason := why_not(settings):
        logger.info("%s", reason)
        return
    try:
        _bring(describe(), settings)
    except Exception:  # the edge to the engine, which compiles for itself whatever happens here
        logger.warning("no caches of compiled kernels are brought or shared", exc_info=True)


def _bring(worker: WorkerCaches, settings: Settings) -> None:
    identity = replace(
        worker.weights,
        extra_parameters={},
        compile_config_digest=worker.configuration,
        gpu_arch=worker.weights.gpu_arch or processor_architecture(),
    )
    brought = bring(identity, KINDS, settings, node_rank=worker.node_rank, environ=worker.environ)
    if not worker.first:
        brought.close()
    elif not _shared(worker, identity, brought, settings) and brought.usage():
        LateUsage(brought, settings.artifact_ready_timeout)


def _shared(worker: WorkerCaches, identity: SourceIdentity, brought: BroughtCaches, settings: Settings) -> bool:
    """Share when the engine is ready, and say then what was used; return whether anything tells that it is."""
    source = process_worker(worker.device, settings)
    return source is not None and None is not share_when_ready(
        identity,
        KINDS,
        settings,
        brought=brought,
        environ=worker.environ,
        worker=source,
        node_rank=worker.node_rank,
    )
