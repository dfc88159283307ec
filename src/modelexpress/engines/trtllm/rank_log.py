"""Log files of ranks: MPI swallows what workers print, so each one writes a file of its own."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelexpress.engines.messages import show_in_log_of
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

_OWN = logging.getLogger("modelexpress")
_ENGINE = "TRT-LLM"
"""Name of the engine's logger."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_lock = threading.Lock()
_begun: set[Path] = set()
"""Files that this process has begun: those are continued, while those of another run are written anew."""


@contextmanager
def rank_log(rank: int, settings: Settings) -> Iterator[None]:
    """Write what this package logs within the block to `rank<N>.log` in MX_TRANSFER_LOG_DIR, where that is set.

    A folder that cannot be written is warned of, and nothing else.

    Args:
        rank: Of this worker.
        settings: Names the folder.
    """
    show_in_log_of(_ENGINE)
    handler = _handler(rank, settings)
    if handler is None:
        yield
        return
    level = _OWN.level
    if _OWN.getEffectiveLevel() > logging.INFO:
        _OWN.setLevel(logging.INFO)
    _OWN.addHandler(handler)
    try:
        yield
    finally:
        _OWN.removeHandler(handler)
        _OWN.setLevel(level)
        handler.close()


def _handler(rank: int, settings: Settings) -> logging.Handler | None:
    if not settings.transfer_log_dir:
        return None
    path = Path(settings.transfer_log_dir).absolute() / f"rank{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock:
            handler = logging.FileHandler(path, mode="a" if path in _begun else "w", encoding="utf-8")
            _begun.add(path)
    except OSError as error:
        logger.warning("no log file for rank %d: %s (MX_TRANSFER_LOG_DIR)", rank, error)
        return None
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler
