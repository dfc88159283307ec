"""A lease in use, on the reader's side: kept alive, and its source followed while that is still receiving."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from modelexpress.errors import PeerError
from modelexpress.peer.client import PeerClient
from modelexpress.transfer.prefix import Prefix
from modelexpress.wire.peer import LeaseGrant

logger = logging.getLogger(__name__)

_LONGEST_SILENCE = 1.0
_SHORTEST_SILENCE = 0.05


class HeldLease:
    """A lease in use: a thread reports progress, which keeps it alive, until the block ends and it is released.

    A source that cannot be told is not an error here: if it is gone, the transfer says so.

    Args:
        client: Of the source; it outlives this.
        grant: What the source answered.
    """

    def __init__(self, client: PeerClient, grant: LeaseGrant) -> None:
        self.grant = grant
        self.verified_bytes = 0
        self.verified_chunks = 0
        self.bytes_per_second = grant.bytes_per_second
        self._client = client
        self._stop = threading.Event()
        self._cancel: Callable[[], object] | None = None
        self._reporter = threading.Thread(target=self._report, name="mx-lease", daemon=True)
        self._follower: threading.Thread | None = None

    def follow(self, chunks: int) -> Prefix:
        """Return how far the source is, of so many chunks; it grows while the source is receiving itself."""
        prefix = Prefix(chunks, complete=self.grant.verified_chunks >= chunks)
        if not prefix.complete:
            prefix.reach(self.grant.verified_chunks)
            self._follower = threading.Thread(target=self._follow, args=(prefix,), name="mx-follow", daemon=True)
            self._follower.start()
        return prefix

    def __enter__(self) -> Self:
        self._reporter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._cancel is not None:
            self._cancel()
        for thread in (self._reporter, self._follower):
            if thread is not None:
                thread.join()
        try:
            self._client.release(self.grant.lease_id)
        except PeerError as gone:
            logger.debug("lease not released, it will expire: %s", gone)

    def _report(self) -> None:
        interval = min(_LONGEST_SILENCE, max(self.grant.ttl_seconds / 4, _SHORTEST_SILENCE))
        while not self._stop.wait(interval):
            try:
                self.bytes_per_second = self._client.report(
                    self.grant.lease_id, self.verified_bytes, self.verified_chunks
                )
            except PeerError as error:
                logger.debug("progress not reported: %s", error)

    def _follow(self, prefix: Prefix) -> None:
        self._client.follow(self.grant.lease_id, prefix, self._cancel_with)

    def _cancel_with(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        if self._stop.is_set():
            cancel()
