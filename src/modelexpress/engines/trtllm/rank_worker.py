"""The worker of one rank: sources have one for each rank that they offer, targets for each that they pass on."""

import logging

from modelexpress.errors import ConfigurationError
from modelexpress.peer import Worker
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)


def rank_worker(registry: str, rank: int, settings: Settings, *, any_port: bool = False) -> Worker:
    """Return a worker of its own for a rank.

    Args:
        registry: HOST:PORT.
        rank: It selects the port; where that is taken, any free one is used.
        settings: Ports, transports and limits.
        any_port: Nobody looks for it on that port: no warning when it is taken.

    Raises:
        ConfigurationError: The worker server cannot listen, or the token or a TLS file cannot be read.
    """
    try:
        return Worker(registry, device=rank, settings=settings, any_port=any_port)
    except ConfigurationError as error:
        if not settings.worker_grpc_port:
            raise
        # Two sources on one host want the same ports.
        logger.info("%s; any free port is used", error)
        return Worker(registry, settings=settings.model_copy(update={"worker_grpc_port": 0}))
