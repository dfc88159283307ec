"""A publication: one material kept in the registry as long as it is offered here."""

import logging
import os
import random
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from modelexpress.client.attendance import Attendance
from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.peer.farewell import Closable, undisturbed
from modelexpress.peer.ready import Probe, wait_until_ready
from modelexpress.peer.server import WorkerServer
from modelexpress.wire.records import ReaderStatus, SourceStatus, WorkerRecord

logger = logging.getLogger(__name__)

_FIRST_RETRY = 0.2
_LAST_RETRY = 5.0
_chance = random.Random()
"""Apart from the generator of the process, whose numbers an engine may have to repeat."""


class Registry(Protocol):
    """What a publication needs of the registry client."""

    def publish(self, identity: SourceIdentity, record: WorkerRecord) -> str:
        """Put a record in place."""

    def update_status(
        self,
        source_id: str,
        worker_id: str,
        worker_rank: int,
        status: SourceStatus,
        source_load: float | None = None,
    ) -> bool:
        """Set a status, which is also the heartbeat; False when there is no such record."""

    def attend(self, source_id: str, worker_id: str, broken: Callable[[], object]) -> Attendance:
        """Hold a call open for a record, so that its worker is missed at once when it dies."""


class PublicationState(Enum):
    """Where a publication is in its life."""

    PUBLISHING = "publishing"
    """The engine is not ready, or the registry has not taken it yet; it is tried again and again."""
    READY = "ready"
    """The registry lists it, and hears heartbeats."""
    CLOSED = "closed"
    """Withdrawn; nobody can read it any more."""


class Publication:
    """This process is a source of one material until the publication is closed.

    A thread publishes the record, trying until the registry takes it, then sends heartbeats. When the registry
    has lost the record it is published again. A call that is held open tells the registry when this process is killed.

    Args:
        server: Offers the material already.
        registry: Where to publish.
        identity: Of the material.
        record: What the registry is told.
        heartbeat_interval: Seconds between heartbeats.
        ready: Asks whether the engine is ready: before that the registry is not told; None: it is told at once.
        ready_timeout: Seconds after which an engine that is not ready is given up: the registry is never told.
    """

    def __init__(
        self,
        server: WorkerServer,
        registry: Registry,
        identity: SourceIdentity,
        record: WorkerRecord,
        heartbeat_interval: float,
        ready: Probe | None = None,
        ready_timeout: float = 0.0,
    ) -> None:
        self.source_id = identity.source_id
        self.worker_id = record.worker_id
        self.endpoint = record.worker_grpc_endpoint
        self._server = server
        self._registry = registry
        self._identity = identity
        self._record = record
        self._interval = heartbeat_interval
        self._probe = ready
        self._ready_timeout = ready_timeout
        self._owner = os.getpid()
        self._recorded = False
        self._attendance: Attendance | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._along: list[Closable] = []
        self._thread = threading.Thread(target=self._keep, name="mx-publication", daemon=True)
        self._thread.start()

    @property
    def state(self) -> PublicationState:
        """Whether the registry knows of it."""
        if self._stop.is_set():
            return PublicationState.CLOSED
        return PublicationState.READY if self._ready.is_set() else PublicationState.PUBLISHING

    @property
    def readers(self) -> list[ReaderStatus]:
        """Who reads it, and how far they are."""
        return self._server.shelf.leases.readers(self.source_id)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the registry lists it; return whether it does after `timeout` seconds."""
        return self._ready.wait(timeout)

    def close_along(self, thing: Closable) -> None:
        """Close `thing`, too, when this publication is closed."""
        self._along.append(thing)

    def close(self) -> None:
        """Tell the registry, then withdraw the material. Closing twice is allowed, and nothing in a forked child.

        Every step may be done twice: on SIGTERM another thread closes what this one is in the middle of closing.
        """
        if self._closed.is_set() or os.getpid() != self._owner:
            return
        with undisturbed():
            self._stop.set()
            self._wake.set()
            self._thread.join()
            self._withdraw()
            if self._attendance is not None:
                self._attendance.end()
            self._server.shelf.remove(self.source_id)
            while self._along:
                self._along.pop().close()
            self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self) -> None:
        if not self._await_engine():
            return
        retry, said = _FIRST_RETRY, ""
        while not self._stop.is_set():
            try:
                self._publish_or_beat()
                self._attend()
                retry, said = _FIRST_RETRY, ""
                if self._wake.wait(self._interval):
                    self._wake.clear()
                    self._stop.wait(_chance.uniform(0, _FIRST_RETRY))
            except ModelExpressError as error:
                level = logging.DEBUG if str(error) == said else logging.WARNING
                said = str(error)
                logger.log(level, "the registry cannot be told of source %s, trying on: %s", self.source_id, said)
                # Random, so that a fleet does not fall upon a registry that comes back.
                self._stop.wait(retry * _chance.uniform(0.5, 1.0))
                retry = min(2 * retry, _LAST_RETRY, self._interval)

    def _await_engine(self) -> bool:
        if self._probe is None:
            return True
        logger.info("source %s is announced when the engine is ready", self.source_id)
        reason = wait_until_ready(self._probe, self._ready_timeout, self._stop)
        if reason and not self._stop.is_set():
            logger.warning("source %s is not announced: %s", self.source_id, reason)
        return not reason

    def _publish_or_beat(self) -> None:
        leases = self._server.shelf.leases
        leases.expire()
        if self._ready.is_set() and self._update(SourceStatus.READY, float(len(leases))):
            return
        self._ready.clear()
        self._registry.publish(self._identity, self._record)
        self._recorded = True
        self._update(SourceStatus.READY, float(len(leases)))
        self._ready.set()
        logger.info("source %s is ready as worker %s at %s", self.source_id, self.worker_id, self.endpoint)

    def _attend(self) -> None:
        if self._attendance is None or not (self._attendance.held or self._attendance.unknown):
            self._attendance = self._registry.attend(self.source_id, self.worker_id, self._wake.set)

    def _withdraw(self) -> None:
        if not self._recorded:
            return
        try:
            self._update(SourceStatus.STALE, None)
            self._recorded = False
        except ModelExpressError as error:
            logger.warning("the registry was not told that %s is gone, it will notice: %s", self.source_id, error)

    def _update(self, status: SourceStatus, load: float | None) -> bool:
        record = self._record
        return self._registry.update_status(self.source_id, record.worker_id, record.worker_rank, status, load)
