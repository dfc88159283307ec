"""The use of what was brought, told where nothing says when the engine is ready."""

import threading
import time

from modelexpress.artifacts.bringing import BroughtCaches
from modelexpress.peer import ClosingThread

_QUIET = 60.0
_LOOKS = 6


class LateUsage:
    """Says once how many of the files that were brought were used, and stops watching them then.

    That is when each kind of cache was used and nothing more is read for a while, when patience ends, or when this is
    closed, at exit and on SIGTERM, too.

    Args:
        brought: What was brought; closed by this.
        patience: Seconds after which it is said whatever was used.
        quiet: Seconds without further use after which an engine counts as warm.
    """

    def __init__(self, brought: BroughtCaches, patience: float, *, quiet: float = _QUIET) -> None:
        self._brought = brought
        self._patience = patience
        self._quiet = quiet
        self._stop = threading.Event()
        self._thread = ClosingThread(self._run, "mx-artifact-usage", self._stop)

    def close(self) -> None:
        """Say it now unless it was said before. Closing twice is allowed, and nothing in a forked child."""
        self._thread.close()

    def _run(self) -> None:
        self._wait()
        self._brought.say_usage(ready=False)
        self._brought.close()

    def _wait(self) -> None:
        now = time.monotonic()
        deadline, changed, seen = now + self._patience, now, 0
        while not self._stop.wait(min(self._quiet / _LOOKS, self._patience)) and (now := time.monotonic()) < deadline:
            counts = [usage.used or 0 for usage in self._brought.usage().values()]
            if sum(counts) != seen:
                seen, changed = sum(counts), now
            elif all(counts) and now - changed >= self._quiet:
                return
