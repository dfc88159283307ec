"""The threads of one reader and the work they share: parts of transfers, in the order they were asked for."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from modelexpress.errors import PeerLost, RegionWithdrawn, TransportError
from modelexpress.transport.base import Run
from modelexpress.transport.pending import PendingTransfer

PART_BYTES = 8 << 20
"""The largest part: long enough that its overhead vanishes, short enough that `close` is prompt."""
PART_RUNS = 512
"""The most runs in a part: small runs share one, so that thousands of them cost little more than their bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Runs of one transfer that one thread copies in one go."""

    transfer: PendingTransfer
    runs: tuple[Run, ...]
    nbytes: int


def out_of_range(runs: Sequence[Run], region_bytes: Sequence[int]) -> str | None:
    """Return which run leaves its region, with the numbers; None when every byte is within."""
    for run in runs:
        if not 0 <= run.region < len(region_bytes):
            return f"region {run.region} was asked for; the source offers {len(region_bytes)}"
        size = region_bytes[run.region]
        if run.offset < 0 or run.nbytes < 0 or run.offset + run.nbytes > size:
            return f"region {run.region} has {size} bytes; {run.nbytes} at {run.offset} were asked for"
    return None


class Crew:
    """A queue of parts, and the threads that take them; they start with the first transfer.

    Args:
        name: Prefix of the threads' names.
        region_bytes: Size of each region; no run may leave them.
        workers: What each thread runs. A worker takes parts until `take` returns None, and reports them with
            `land`, or `fail`s.
        part_bytes: The largest part.
    """

    def __init__(
        self,
        name: str,
        region_bytes: Sequence[int],
        workers: Sequence[Callable[[], None]],
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._region_bytes = region_bytes
        self._part_bytes = part_bytes
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Part] = deque()
        self._transfers: set[PendingTransfer] = set()
        self._end: TransportError | None = None
        self._started = False
        self._owner = os.getpid()
        # Daemons: a process that ends without closing its readers must not wait for them.
        self._threads = [
            threading.Thread(target=worker, name=f"{name}-{number}", daemon=True)
            for number, worker in enumerate(workers)
        ]

    def submit(self, runs: Sequence[Run]) -> PendingTransfer:
        """Return the transfer that copies `runs`; if one of them is out of range, nothing is copied."""
        transfer = PendingTransfer(sum(run.nbytes for run in runs))
        if (problem := out_of_range(runs, self._region_bytes)) is not None:
            transfer.fail(RegionWithdrawn(problem))
        with self._lock:
            if self._end is not None:
                transfer.fail(self._end)
            if transfer.done():
                return transfer
            self._transfers.add(transfer)
            self._queue.extend(Part(transfer, part, nbytes) for part, nbytes in _cut(runs, self._part_bytes))
            self._start()
            self._changed.notify_all()
        return transfer

    def take(self, block: bool) -> Part | None:
        """Return the next part; None when there is none, or, if it may `block`, when the crew has ended."""
        with self._lock:
            while self._end is None:
                while self._queue:
                    part = self._queue.popleft()
                    if not part.transfer.done():  # else it failed, and the rest of it is not wanted
                        return part
                if not block:
                    break
                self._changed.wait()
        return None

    def land(self, part: Part) -> None:
        """Count a part whose bytes are all in their place."""
        part.transfer.land(part.nbytes)
        self._forget(part.transfer)

    def refuse(self, part: Part, error: TransportError) -> None:
        """Fail the transfer of one part; the others go on."""
        part.transfer.fail(error)
        self._forget(part.transfer)

    def fail(self, error: TransportError) -> None:
        """Fail every transfer, and each later one, and let the threads end. Only the first call counts."""
        with self._lock:
            if self._end is None:
                self._end = error
            self._queue.clear()
            transfers = tuple(self._transfers)
            self._transfers.clear()
            self._changed.notify_all()
        for transfer in transfers:
            transfer.fail(error)

    def close(self) -> None:
        """Fail what is left; `join` waits for the threads."""
        if os.getpid() == self._owner:  # a forked child has none of the threads, and maybe a lock that one of them held
            self.fail(PeerLost("the reader was closed before the transfer was through"))

    def join(self) -> None:
        """Return when no thread of the crew runs any more."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()

    def _forget(self, transfer: PendingTransfer) -> None:
        if transfer.done():
            with self._lock:
                self._transfers.discard(transfer)


def _cut(runs: Sequence[Run], part_bytes: int) -> Iterator[tuple[tuple[Run, ...], int]]:
    """Yield the runs in groups of at most `part_bytes` and `PART_RUNS`, with the bytes of each group."""
    group: list[Run] = []
    nbytes = 0
    for run in runs:
        for piece in _slices(run, part_bytes):
            if nbytes + piece.nbytes > part_bytes or len(group) == PART_RUNS:
                yield tuple(group), nbytes
                group, nbytes = [], 0
            group.append(piece)
            nbytes += piece.nbytes
    if group:
        yield tuple(group), nbytes


def _slices(run: Run, part_bytes: int) -> Iterator[Run]:
    if 0 < run.nbytes <= part_bytes:
        yield run
        return
    for start in range(0, run.nbytes, part_bytes):
        nbytes = min(part_bytes, run.nbytes - start)
        yield Run(run.region, run.offset + start, run.address + start, nbytes)
