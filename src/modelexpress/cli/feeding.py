"""Who feeds whom: the readers of sources, the readers of those that pass on what they receive, and so on."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modelexpress.errors import ModelExpressError
from modelexpress.peer import PeerClient
from modelexpress.wire.records import ReaderStatus

_AT_ONCE = 16
_MOST_ASKED = 2048
_PATIENCE = 1.0


@dataclass
class Fed:
    """One reader as people see it, with its own readers; bytes verified of bytes in all, after `seconds`."""

    worker_id: str
    endpoint: str
    verified_bytes: int
    total_bytes: int
    seconds: float
    readers: list["Fed"] = field(default_factory=list)


@dataclass(frozen=True)
class _Worker:
    """A worker to be asked, and where what it says goes."""

    endpoint: str
    source_id: str
    readers: list[Fed]


def feeding(sources: Iterable[tuple[str, str]]) -> list[list[Fed]]:
    """Return the readers of each source, and theirs.

    Args:
        sources: Endpoint of the worker and source id of the material.
    """
    found = [_Worker(endpoint, source_id, []) for endpoint, source_id in sources]
    asked: set[tuple[str, str]] = set()
    level = found
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mx-feeding") as pool:
        while level and len(asked) < _MOST_ASKED:
            # Each once: what is seen is a moment in which a reader may have changed its place.
            level = [w for w in level if w.endpoint and (w.endpoint, w.source_id) not in asked]
            asked |= {(worker.endpoint, worker.source_id) for worker in level}
            level = [below for workers in pool.map(_ask, level) for below in workers]
    return [worker.readers for worker in found]


def _ask(worker: _Worker) -> list[_Worker]:
    """Add a worker's readers, and return those that have to be asked in turn."""
    try:
        with PeerClient(worker.endpoint, timeout=_PATIENCE) as client:
            statuses = client.readers(worker.source_id)
    except ModelExpressError:
        # It is gone, or of another make: then nobody can say.
        return []
    worker.readers.extend(_fed(status) for status in statuses)
    return [_Worker(reader.endpoint, worker.source_id, reader.readers) for reader in worker.readers]


def _fed(status: ReaderStatus) -> Fed:
    return Fed(status.reader_id, status.endpoint, status.verified_bytes, status.total_bytes, round(status.seconds, 3))
