"""The worker of an engine's process: one for each registry, whatever the process loads and publishes."""

import logging
import os
import threading

from modelexpress.errors import ConfigurationError, ModelExpressError
from modelexpress.peer import Probe, UrlProbe, Worker
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_workers: dict[tuple[int, str], Worker] = {}
"""By process, which may be a child of another one, and registry."""


def process_worker(device: int, settings: Settings) -> Worker | None:
    """Return this process's worker at a registry; None, with the reason logged, where there can be none.

    It ends with the process.

    Where MX_ARTIFACT_READY_URL tells when the engine is ready, the registry hears of its sources then, else at once: an
    engine that fails before it serves is nobody's source. Who is sent here by its own source may read before that.
    Two workers on one host may want the same port: the second one gets any that is free.

    Args:
        device: Index of the accelerator that this process drives.
        settings: The registry, ports and timeouts.
    """
    key = (os.getpid(), settings.registry)
    with _lock:
        if key not in _workers:
            try:
                _workers[key] = _make(device, settings)
            except ModelExpressError as error:
                logger.warning("this process cannot be a source: %s", error)
        return _workers.get(key)


def _make(device: int, settings: Settings) -> Worker:
    ready = _probe(settings)
    try:
        return Worker(device=device, settings=settings, ready=ready)
    except ModelExpressError as error:
        if not settings.worker_grpc_port:
            raise
        logger.info("%s; any free port is used", error)
        return Worker(settings=settings.model_copy(update={"worker_grpc_port": 0}), ready=ready)


def _probe(settings: Settings) -> Probe | None:
    if not settings.artifact_ready_url:
        return None
    try:
        return UrlProbe(settings.artifact_ready_url)
    except ConfigurationError as error:
        logger.warning("weights are offered before the engine is ready: %s", error)
        return None
