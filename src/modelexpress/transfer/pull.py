"""The pull: batches travel, and each is checked while the next ones are on their way."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from modelexpress.errors import DigestMismatch, TransferTimeout
from modelexpress.transfer.digester import Digester, Pending, digester
from modelexpress.transfer.edges import Edges
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pace import Pace
from modelexpress.transfer.pieces import Pieces, overlapping
from modelexpress.transfer.plan import Batch, Plan
from modelexpress.transfer.prefix import Prefix
from modelexpress.transport import Reader, Transfer

WINDOW = 3
"""Batches on their way at once: one lands, one waits behind it, one is being asked for."""

Progress = Callable[[int], None]
"""Called with the number of bytes verified so far, from the thread that pulls; it may raise to end the pull.

It is called now and then though nothing arrives, so that no source that stands still keeps a pull from its end.
"""

_BEAT_SECONDS = 0.5


Verified = Callable[[Pieces], None]
"""Called with the pieces that are in place and verified, from the thread that verifies."""


@dataclass(frozen=True)
class Feed:
    """The source of a pull, as far as its behaviour matters.

    Args:
        worker_id: For errors.
        prefix: How much of it can be read; None: everything.
        patience: Seconds for which nothing may be heard of how far a prefix is.
        rate: Returns the bytes a second that it allows now; 0: no limit.
    """

    worker_id: str
    prefix: Prefix | None = None
    patience: float = 30.0
    rate: Callable[[], int] = field(default=lambda: 0)


@dataclass(frozen=True)
class PullResult:
    """What a pull took: seconds until the last byte was verified, and the bytes that travelled."""

    seconds: float
    nbytes: int


def pull(
    plan: Plan,
    reader: Reader,
    manifest: Manifest,
    ledger: Ledger,
    *,
    feed: Feed,
    timeout: float,
    device: int | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    verified: Verified | None = None,
) -> PullResult:
    """Execute a plan and verify every byte of it.

    What was verified before an error is in the ledger, so that another source can go on from there. When this
    returns or raises, nothing lands any more only once the reader is closed: its owner closes it.

    Args:
        plan: What to copy.
        reader: Access to the source's regions.
        manifest: The source's manifest, for the names in errors.
        ledger: Takes note of every verified chunk.
        feed: The source: it may still be receiving, and may limit the rate.
        timeout: Seconds that the whole pull may take.
        device: The CUDA device that the destinations are on; None: host memory.
        verify: False skips the digests. Only benchmarks do that: nothing enters the ledger then.
        progress: Told how far it is.
        verified: Told which pieces are verified, as soon as they are.

    Raises:
        DigestMismatch: A chunk is not what the source published.
        TransportError: The transport failed; TransferTimeout when the time is over; PeerLost when a source that
            was still receiving will receive no more.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mx-verify") as pool:
        checker = _Checker(manifest, ledger, feed.worker_id, digester(device) if verify else None, verified)
        run = _Pull(plan, reader, checker, pool, feed, progress)
        return run.execute(time.monotonic() + timeout)


class _Checker:
    """Compares pieces in place with their digests and keeps the ledger."""

    def __init__(
        self,
        manifest: Manifest,
        ledger: Ledger,
        source: str,
        digests: Digester | None,
        verified: Verified | None,
    ) -> None:
        self._manifest = manifest
        self._ledger = ledger
        self._source = source
        self._digests = digests
        self._verified = verified

    def start(self, pieces: Pieces) -> Pending | None:
        """Begin a check without waiting; `finish` must follow, so that nothing reads the pieces any more."""
        if self._digests is None:
            return None
        return self._digests.start(np.ascontiguousarray(pieces["address"]), pieces["nbytes"].astype(np.uint64))

    def finish(self, pieces: Pieces, pending: Pending | None, edges: Edges | None = None) -> None:
        """Raise DigestMismatch at the first piece that is wrong; the ones that are right are recorded.

        Of pieces in the scratch, `edges` puts the wanted parts in place before.
        """
        good = np.ones(len(pieces), np.bool_) if pending is None else pending.result() == pieces["digest"]
        if edges is not None:
            edges.put(pieces[good])
        if pending is None:
            return
        self._ledger.record(self._manifest, pieces[good])
        if self._verified is not None:
            self._verified(pieces[good])
        if not good.all():
            bad = pieces[~good][0]
            name = self._manifest.tensors[int(bad["tensor"])].name
            raise DigestMismatch(name, int(bad["chunk"]), self._source)


class _Pull:
    """One execution of a plan: what is on its way, and what is being checked."""

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        checker: _Checker,
        pool: ThreadPoolExecutor,
        feed: Feed,
        progress: Progress | None,
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._checker = checker
        self._pool = pool
        self._feed = feed
        self._pace = Pace(feed.rate)
        self._progress = progress
        self._travelling: deque[tuple[Batch, Transfer]] = deque()
        self._checking: deque[tuple[Batch, Future[None]]] = deque()
        self._verified = plan.kept_bytes

    def execute(self, deadline: float) -> PullResult:
        started = time.perf_counter()
        try:
            for batch in self._plan.batches:
                self._await_turn(batch, deadline)
                self._travelling.append((batch, self._reader.read(batch.runs)))
                self._pace.spend(batch.nbytes)
            while self._travelling:
                self._land(deadline)
        finally:
            # What has landed counts, also when the source has just died.
            self._settle(len(self._checking))
        self._check_overlaps()
        return PullResult(time.perf_counter() - started, self._plan.nbytes)

    def _await_turn(self, batch: Batch, deadline: float) -> None:
        """Return when a batch may be asked for: there is room, the source has it, and the rate allows it."""
        prefix = self._feed.prefix
        while len(self._travelling) == WINDOW or (self._travelling and not self._is_turn(batch)):
            # Whoever reads from here waits for what has landed, so that goes before anything else.
            self._land(deadline)
        if prefix is not None and prefix.value < batch.end:
            self._settle(len(self._checking))
            prefix.wait_for(batch.end, self._feed.patience, self._left(deadline))
        if batch.edges is not None:
            # Whatever used its slot before is among these: of what travels, each batch has a slot of its own.
            self._settle(len(self._checking))
        if delay := self._pace.delay():
            time.sleep(min(delay, self._left(deadline)))

    def _is_turn(self, batch: Batch) -> bool:
        prefix = self._feed.prefix
        return (prefix is None or prefix.value >= batch.end) and not self._pace.delay()

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransferTimeout(
                f"the transfer was not through in time, {self._plan.nbytes} bytes were asked for: "
                "raise MX_TRANSFER_TIMEOUT or see `mx doctor` for the speed of the link"
            )
        return left

    def _land(self, deadline: float) -> None:
        """Wait for the oldest batch and begin its check, which goes on while others are waited for."""
        batch, transfer = self._travelling.popleft()
        self._wait(transfer, deadline)
        pending = self._checker.start(batch.pieces)
        self._checking.append((batch, self._pool.submit(self._checker.finish, batch.pieces, pending, batch.edges)))
        self._settle(sum(future.done() for _, future in self._checking))

    def _wait(self, transfer: Transfer, deadline: float) -> None:
        while not transfer.done():
            try:
                transfer.wait(min(self._left(deadline), _BEAT_SECONDS))
            except TransferTimeout:
                if transfer.done():
                    raise  # not this moment has passed, but the reader's patience
                self._tell()
        transfer.wait(_BEAT_SECONDS)

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._verified)

    def _settle(self, count: int) -> None:
        """Take the results of the `count` oldest checks."""
        for _ in range(count):
            batch, future = self._checking.popleft()
            if future.exception() is not None:
                self._checking.clear()  # the pool sees them through; the first error is the one to tell
            future.result()
            self._verified += batch.nbytes
            self._tell()

    def _check_overlaps(self) -> None:
        """Check again what a later piece may have overwritten: tensors of the target that share bytes."""
        in_place = [batch.pieces for batch in self._plan.batches if batch.edges is None]
        if in_place:
            pieces = np.concatenate(in_place)
            shared = pieces[overlapping(pieces)]
            if len(shared):
                self._checker.finish(shared, self._checker.start(shared))
