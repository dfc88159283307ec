"""The pull: batches travel, and each is checked while the next ones are on their way."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from modelexpress.errors import DigestMismatch, TransferTimeout
from modelexpress.transfer.digester import Digester, digester
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces, overlapping
from modelexpress.transfer.plan import Batch, Plan
from modelexpress.transport import Reader, Transfer

WINDOW = 3
"""Batches on their way at once: one lands, one waits behind it, one is being asked for."""

Progress = Callable[[int], None]
"""Called with the number of bytes verified so far, from the thread that pulls."""


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
    source: str,
    timeout: float,
    device: int | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> PullResult:
    """Execute a plan and verify every byte of it.

    What was verified before an error is in the ledger, so that another source can go on from there. When this
    returns or raises, nothing lands any more only once the reader is closed: its owner closes it.

    Args:
        plan: What to copy.
        reader: Access to the source's regions.
        manifest: The source's manifest, for the names in errors.
        ledger: Takes note of every verified chunk.
        source: Worker id of the source, for errors.
        timeout: Seconds that the whole pull may take.
        device: The CUDA device that the destinations are on; None: host memory.
        verify: False skips the digests. Only benchmarks do that: nothing enters the ledger then.
        progress: Told how far it is.

    Raises:
        DigestMismatch: A chunk is not what the source published.
        TransportError: The transport failed; TransferTimeout when the time is over.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mx-verify") as pool:
        checker = _Checker(manifest, ledger, source, digester(device) if verify else None)
        run = _Pull(plan, reader, checker, pool, progress)
        return run.execute(time.monotonic() + timeout)


class _Checker:
    """Compares pieces in place with their digests and keeps the ledger."""

    def __init__(self, manifest: Manifest, ledger: Ledger, source: str, digests: Digester | None) -> None:
        self._manifest = manifest
        self._ledger = ledger
        self._source = source
        self._digests = digests

    def check(self, pieces: Pieces) -> None:
        """Raise DigestMismatch at the first piece that is wrong; the ones that are right are recorded."""
        if self._digests is None:
            return
        found = self._digests(np.ascontiguousarray(pieces["address"]), pieces["nbytes"].astype(np.uint64))
        good = found == pieces["digest"]
        self._ledger.record(self._manifest, pieces[good])
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
        progress: Progress | None,
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._checker = checker
        self._pool = pool
        self._progress = progress
        self._travelling: deque[tuple[Batch, Transfer]] = deque()
        self._checking: deque[tuple[Batch, Future[None]]] = deque()
        self._verified = plan.kept_bytes

    def execute(self, deadline: float) -> PullResult:
        started = time.perf_counter()
        try:
            for batch in self._plan.batches:
                if len(self._travelling) == WINDOW:
                    self._land(deadline)
                self._travelling.append((batch, self._reader.read(batch.runs)))
            while self._travelling:
                self._land(deadline)
        finally:
            # What has landed counts, also when the source has just died.
            self._settle(len(self._checking))
        self._check_overlaps()
        return PullResult(time.perf_counter() - started, self._plan.nbytes)

    def _land(self, deadline: float) -> None:
        """Wait for the oldest batch and hand it to the checker."""
        batch, transfer = self._travelling.popleft()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransferTimeout(
                f"the transfer was not through in time, {self._plan.nbytes} bytes were asked for: "
                "raise MX_TRANSFER_TIMEOUT or see `mx doctor` for the speed of the link"
            )
        transfer.wait(left)
        self._checking.append((batch, self._pool.submit(self._checker.check, batch.pieces)))
        self._settle(sum(future.done() for _, future in self._checking))

    def _settle(self, count: int) -> None:
        """Take the results of the `count` oldest checks."""
        for _ in range(count):
            batch, future = self._checking.popleft()
            future.result()
            self._verified += batch.nbytes
            if self._progress is not None:
                self._progress(self._verified)

    def _check_overlaps(self) -> None:
        """Check again what a later piece may have overwritten: tensors of the target that share bytes."""
        if self._plan.batches:
            pieces = np.concatenate([batch.pieces for batch in self._plan.batches])
            shared = pieces[overlapping(pieces)]
            if len(shared):
                self._checker.check(shared)
