"""The prefix: how many leading chunks of a manifest are in place and verified, for those who read them from here."""

import threading
import time

import numpy as np
import numpy.typing as npt

from modelexpress.errors import PeerLost, TransferTimeout

Integers = npt.NDArray[np.int64]


class Prefix:
    """Counts the chunks that are there without a gap, from the first on. Threads wait for it to grow.

    Args:
        chunks: Of the whole manifest.
        complete: All of them are there.
        twins: Pairs (chunk, the chunk that it shares its memory with): the first is there when the second is.
    """

    def __init__(self, chunks: int, *, complete: bool = False, twins: Integers | None = None) -> None:
        self.chunks = chunks
        self._in_place = np.full(chunks, complete)
        self._twins = np.empty((0, 2), np.int64) if twins is None else twins
        self._value = chunks if complete else 0
        self._ended = ""
        self._heard = time.monotonic()
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._grown = threading.Condition(self._lock)

    @property
    def value(self) -> int:
        """Leading chunks that are in place and verified."""
        return self._value

    @property
    def complete(self) -> bool:
        """Whether every chunk is in place and verified."""
        return self._value == self.chunks

    def mark(self, numbers: Integers) -> None:
        """Note that chunks are in place and verified, by their numbers in the order of the manifest."""
        with self._lock:
            self._in_place[numbers] = True
            if len(self._twins):
                self._in_place[self._twins[:, 0]] = self._in_place[self._twins[:, 1]]
            rest = self._in_place[self._value :]
            gaps = np.flatnonzero(~rest)
            self._advance(self._value + (int(gaps[0]) if len(gaps) else len(rest)))

    def reach(self, value: int) -> None:
        """Note that the first `value` chunks are in place; a value below the present one is ignored."""
        with self._lock:
            self._advance(min(max(value, self._value), self.chunks))

    def hear(self, value: int) -> None:
        """Note that whoever fills this prefix lives, and that the first `value` chunks are in place."""
        with self._lock:
            self._heard = time.monotonic()
            self._advance(min(max(value, self._value), self.chunks))
            self._grown.notify_all()

    def end(self, reason: str) -> None:
        """Say that no more chunks will come, which those who wait get as an error. A complete prefix cannot end."""
        with self._lock:
            if not self.complete and not self._ended:
                self._ended = reason
                self._grown.notify_all()

    def wait_for(self, value: int, silence: float, timeout: float) -> None:
        """Return when the first `value` chunks are in place.

        Args:
            value: Of the chunks.
            silence: Seconds for which nothing may be heard.
            timeout: Seconds to wait in all.

        Raises:
            PeerLost: No more will come.
            TransferTimeout: Nothing was heard for too long, or the timeout passed.
        """
        began = time.monotonic()
        with self._lock:
            while self._value < value:
                if self._ended:
                    raise PeerLost(self._ended)
                now = time.monotonic()
                left = min(max(self._heard, began) + silence, began + timeout) - now
                if left <= 0:
                    raise TransferTimeout(
                        f"the source, which is still receiving itself, verified no chunk for {now - began:.0f} s "
                        "(MX_STALL_TIMEOUT, MX_TRANSFER_TIMEOUT)"
                    )
                self._grown.wait(left)

    def wait_beyond(self, value: int, timeout: float) -> int:
        """Return how many chunks are in place, at once when more than `value`, else after growth or `timeout` seconds.

        Raises:
            PeerLost: No more will come.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._value <= value and not self.complete:
                if self._ended:
                    raise PeerLost(self._ended)
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._grown.wait(left)
            return self._value

    def _advance(self, value: int) -> None:
        if value != self._value:
            self._value = value
            self._grown.notify_all()
