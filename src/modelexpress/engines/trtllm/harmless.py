"""What a worker does for others must not hurt its own engine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from modelexpress.errors import ModelExpressError

logger = logging.getLogger(__name__)


@contextmanager
def harmless(outcome: str) -> Iterator[None]:
    """Log what goes wrong in the block, and go on after it. That a package is missing is told apart from a failure.

    Args:
        outcome: What becomes of it then, as the beginning of a message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        logger.warning("%s: the package '%s' is not installed", outcome, error.name)
    except ModelExpressError as error:
        logger.warning("%s: %s", outcome, error)
    except Exception:  # the engine has its weights: whatever this is, it must not take them away
        logger.exception("%s: this is a defect, please report it", outcome)
