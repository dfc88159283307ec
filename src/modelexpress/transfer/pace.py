"""The pace: how a reader keeps below the rate that its source allows."""

import time
from collections.abc import Callable

_SLACK = 0.01
"""Seconds of the rate that may be made up for after a pause."""


class Pace:
    """Says when the next bytes may be asked for.

    Args:
        rate: Returns the bytes a second that are allowed now; 0: no limit.
    """

    def __init__(self, rate: Callable[[], int]) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def delay(self) -> float:
        """Return the seconds to wait before bytes may be asked for."""
        return max(self._due - time.monotonic(), 0.0) if self._rate() else 0.0

    def spend(self, nbytes: int) -> None:
        """Note that bytes were asked for."""
        if rate := self._rate():
            self._due = max(self._due, time.monotonic() - _SLACK) + nbytes / rate
