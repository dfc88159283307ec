"""A transfer on its way: threads report what has landed, and whoever waits is told when it is over."""

import threading

from modelexpress.errors import TransferTimeout, TransportError
from modelexpress.transport.base import Transfer


class PendingTransfer(Transfer):
    """A transfer that other threads carry out.

    Args:
        nbytes: Bytes in all; a transfer of nothing is over at once.
    """

    def __init__(self, nbytes: int) -> None:
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._nbytes = nbytes
        self._landed = 0
        self._error: TransportError | None = None

    @property
    def progress(self) -> int:
        return self._landed

    def done(self) -> bool:
        return self._error is not None or self._landed == self._nbytes

    def wait(self, timeout: float | None = None) -> None:
        with self._lock:
            if not self._changed.wait_for(self.done, timeout):
                raise TransferTimeout(
                    f"{self._landed} of {self._nbytes} bytes had landed after {timeout:g} s; "
                    "close the reader before the destinations are used again"
                )
            if self._error is not None:
                # A new one for every caller: a traceback belongs to one thread.
                raise type(self._error)(*self._error.args)

    def land(self, nbytes: int) -> None:
        """Count `nbytes` that are in their place."""
        with self._lock:
            self._landed += nbytes
            if self.done():
                self._changed.notify_all()

    def fail(self, error: TransportError) -> None:
        """End the transfer with `error`, unless it is over already."""
        with self._lock:
            if not self.done():
                self._error = error
                self._changed.notify_all()
