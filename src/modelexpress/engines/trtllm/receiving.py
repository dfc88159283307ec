"""Receiving a checkpoint: every rank at once, each from its own source into its own file."""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from modelexpress.engines.trtllm.amount import amount
from modelexpress.engines.trtllm.errors import TransferFailed
from modelexpress.engines.trtllm.finding import Published, ranks_of
from modelexpress.engines.trtllm.partial_folder import PartialFolder
from modelexpress.engines.trtllm.rank_room import RankRoom
from modelexpress.engines.trtllm.relays import Relays
from modelexpress.errors import CheckpointError, LoadError, ModelExpressError
from modelexpress.settings import Settings
from modelexpress.transfer.ledger import Ledger
from modelexpress.weights.fetch import Fetch
from modelexpress.weights.report import Journal, LoadReport, Progress

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """Another rank has failed, or the load was told to end."""


@dataclass(frozen=True)
class Received:
    """What came of it.

    Args:
        files: Configuration and other small files, by path.
        reports: Of each rank, in order.
        seconds: Until every rank was there, verified and durable.
    """

    files: Mapping[str, bytes]
    reports: tuple[LoadReport, ...]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are in place."""
        return sum(report.nbytes for report in self.reports)

    @property
    def travelled_bytes(self) -> int:
        """Those that came over the network now, and were not in place before."""
        return sum(report.nbytes - report.kept_bytes for report in self.reports)


class Receiving:
    """One load of a checkpoint.

    Args:
        registry: HOST:PORT.
        model_name: As the source named it.
        published: What is received.
        folder: Where to.
        relays: Pass on what arrives.
        settings: Timeouts and sizes.
        progress: Told the bytes in place and the bytes in all.
    """

    def __init__(
        self,
        registry: str,
        model_name: str,
        published: Published,
        folder: PartialFolder,
        relays: Relays,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        self._registry = registry
        self._model_name = model_name
        self._published = published
        self._folder = folder
        self._relays = relays
        self._settings = settings
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._so_far = [(0, 0)] * published.world_size

    def run(self) -> Received:
        """Receive every rank.

        Raises:
            TransferFailed: A rank could not be received; what has arrived of all ranks is kept.
            CheckpointError: The disk is full or failed.
        """
        started = time.perf_counter()
        count = self._published.world_size
        with ThreadPoolExecutor(count, thread_name_prefix="mx-trtllm-rank") as pool:
            futures = [pool.submit(self._rank, rank) for rank in range(count)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # Also when this thread is told to end: no rank goes on without the others.
                if any(not future.done() or future.exception() for future in futures):
                    self._stop.set()
        self._raise_first(futures)
        rooms, reports = zip(*(future.result() for future in futures), strict=True)
        received = Received(rooms[0].files, reports, time.perf_counter() - started)
        tensors = sum(report.tensors for report in reports)
        what = amount(tensors, received.travelled_bytes, received.seconds)
        kept = received.nbytes - received.travelled_bytes
        logger.info("%s: %d ranks received, %s%s", self._model_name, count, what, _kept(kept))
        return received

    def _rank(self, rank: int) -> tuple[RankRoom, LoadReport]:
        ledger = Ledger()
        room = RankRoom(rank, self._folder, ledger)

        def advance(done: int, total: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            room.release(done)
            self._advance(rank, done, total)

        # Measuring the limit of the link would take time from the other ranks.
        journal = Journal(advance, measures=False)
        Fetch(
            self._registry,
            lambda client: ranks_of(client, self._model_name, self._published.source_id, rank),
            f"rank {rank} of '{self._model_name}'",
            room,
            journal,
            self._settings,
            passing_on=self._relays.add(rank, room),
            ledger=ledger,
        ).run()
        with journal.stage("write to disk"):
            journal.strategy, journal.tensors = "peer", room.tensors
            room.finish()
        report = journal.report()
        self._advance(rank, report.nbytes, report.nbytes)
        self._say(rank, report)
        return room, report

    def _advance(self, rank: int, done: int, total: int) -> None:
        with self._lock:
            self._so_far[rank] = (done, total)
            if self._progress is not None and all(total for _, total in self._so_far):
                self._progress(sum(done for done, _ in self._so_far), sum(total for _, total in self._so_far))

    def _say(self, rank: int, report: LoadReport) -> None:
        what = amount(report.tensors, report.nbytes - report.kept_bytes, report.seconds)
        by = f"from {report.source} over {report.transport}" if report.transport else f"from {report.source}"
        logger.info("rank %d: %s %s%s", rank, what, by, _kept(report.kept_bytes))

    def _raise_first(self, futures: "list[Future[tuple[RankRoom, LoadReport]]]") -> None:
        """Raise what ended the load: of a rank, as callers expect it, not of those that were stopped for its sake."""
        errors = [(rank, error) for rank, future in enumerate(futures) if (error := future.exception())]
        for rank, error in errors:
            if isinstance(error, _Stopped):
                continue
            if not isinstance(error, ModelExpressError) or isinstance(error, CheckpointError):
                raise error
            logger.error("rank %d of %s could not be received: %s", rank, self._model_name, error)
            raise TransferFailed(f"Transfer failed with status {_status(error)}", [error]) from error


def _kept(nbytes: int) -> str:
    return f"; {nbytes / 1e9:.3f} GB were in place before" if nbytes else ""


def _status(error: BaseException) -> str:
    """Return the kind of an error in one word, such as PEER_LOST."""
    if isinstance(error, LoadError) and error.causes:
        return _status(error.causes[-1])
    name = type(error).__name__
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).lstrip("_").upper()
