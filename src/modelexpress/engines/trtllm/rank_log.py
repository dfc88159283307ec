"""Log files of ranks: MPI swallows what workers print, so each one writes a file of its own."""

import logging
import threading
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
_open: dict[Path, logging.Handler] = {}
"""What writes now, by file."""


def write_rank_log(rank: int, settings: Settings) -> None:
    """Write what this package logs from now on to `rank<N>.log` in MX_TRANSFER_LOG_DIR, where that is set.

    It goes on as long as the process lives: the registry may be lost, and sources withdrawn, long after a load. What
    was written to another folder before ends there. A folder that cannot be written is warned of, and nothing else.

    Args:
        rank: Of this worker.
        settings: Names the folder.
    """
    show_in_log_of(_ENGINE)
    folder = Path(settings.transfer_log_dir).absolute() if settings.transfer_log_dir else None
    with _lock:
        for path in [path for path in _open if path.parent != folder]:
            handler = _open.pop(path)
            _OWN.removeHandler(handler)
            handler.close()
        if folder is not None:
            _begin(folder / f"rank{rank}.log")


def _begin(path: Path) -> None:
    if path in _open:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="a" if path in _begun else "w", encoding="utf-8")
    except OSError as error:
        logger.warning("no log file %s: %s (MX_TRANSFER_LOG_DIR)", path.name, error)
        return
    _begun.add(path)
    _open[path] = handler
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(_FORMAT))
    if _OWN.getEffectiveLevel() > logging.INFO:
        _OWN.setLevel(logging.INFO)
    _OWN.addHandler(handler)
