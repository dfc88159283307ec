"""Sharing: once an engine is ready, its caches are sealed and offered to others, until it ends."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from modelexpress.artifacts.bringing import BroughtCaches, why_not
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.signing import Signer
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.errors import CacheBusy, ConfigurationError, ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import ClosingThread, Probe, Publication, UrlProbe, Worker, wait_until_ready
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

Ready = threading.Event | Callable[[], bool]
"""What tells that the engine is ready: set, or true; asked anew each time."""

_MOST_SILENCE = 3
"""So many questions in a row without a good answer mean that the engine is gone."""

_FIRST_RETRY = 1.0
_LAST_RETRY = 30.0


class Sharing:
    """Offers the caches of an engine while it is ready, until it is closed, at exit and on SIGTERM, too.

    A thread waits for readiness, seals each cache, and offers it; a cache that is being written to is tried again.
    When the engine does not answer any more the offers are withdrawn, and the waiting begins anew: nothing that was
    seen before counts.

    Args:
        identity: What the engine says of itself and its model.
        kinds: The caches that it uses.
        settings: Timeouts and sizes.
        probe: Asks whether the engine is ready.
        brought: What was brought: its use is logged when the engine is ready, before the caches are read here, or when
            it is not waited for any more.
        worker: Serves the caches; None: one of its own, as long as the engine is ready.
        node_rank: Of this host within its replica.
        device: Selects the port of a worker of its own.
        environ: Variables that say where caches are.
    """

    def __init__(
        self,
        identity: SourceIdentity,
        kinds: Iterable[Kind],
        settings: Settings,
        probe: Probe,
        *,
        brought: BroughtCaches | None = None,
        worker: Worker | None = None,
        node_rank: int = 0,
        device: int = 0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._identity = identity
        self._kinds = tuple(kinds)
        self._settings = settings
        self._probe = probe
        self._brought = brought
        self._worker = worker
        self._node_rank = node_rank
        self._device = device
        self._environ = os.environ if environ is None else environ
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._publications: dict[str, Publication] = {}
        self._settled = threading.Event()
        self._thread = ClosingThread(self._edge, "mx-artifact-sharing", self._stop)

    @property
    def publications(self) -> dict[str, Publication]:
        """What is offered now, by kind."""
        with self._lock:
            return dict(self._publications)

    def wait_offered(self, timeout: float | None = None) -> bool:
        """Wait until every cache that can be is offered; return whether that is so after `timeout` seconds."""
        return self._settled.wait(timeout)

    def close(self) -> None:
        """Withdraw everything and end the thread. Closing twice is allowed, and nothing in a forked child."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _edge(self) -> None:
        try:
            self._run()
        except Exception:  # the edge of a thread: nothing of this may reach the engine
            logger.warning("caches of compiled kernels are not offered any more", exc_info=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            reason = wait_until_ready(self._probe, self._settings.artifact_ready_timeout, self._stop)
            self._say_usage(ready=not reason)
            if reason:
                level = logging.INFO if self._stop.is_set() else logging.WARNING
                logger.log(level, "caches of compiled kernels are not offered: %s", reason)
                return
            with self._source() as worker:
                self._share(worker)

    @contextmanager
    def _source(self) -> Iterator[Worker]:
        """Yield what serves the caches, and withdraw them afterwards."""
        with ExitStack() as stack:
            worker = self._worker or stack.enter_context(Worker(device=self._device, settings=self._settings))
            stack.callback(self._withdraw)
            yield worker

    def _withdraw(self) -> None:
        self._settled.clear()
        with self._lock:
            publications = list(self._publications.values())
            self._publications.clear()
        for publication in publications:
            publication.close()

    def _say_usage(self, ready: bool) -> None:
        """Say it once, and before snapshots read the files."""
        if self._brought is not None:
            self._brought.say_usage(ready=ready)
            self._brought.close()
            self._brought = None

    def _share(self, worker: Worker) -> None:
        """Offer every cache, and watch the engine, until it is gone or this is closed."""
        signer = _signer(self._settings)
        waiting, silent, retry = list(self._kinds), 0, _FIRST_RETRY
        while not self._stop.is_set() and silent < _MOST_SILENCE:
            waiting = [kind for kind in waiting if not self._offered(kind, worker, signer)]
            if not waiting:
                self._settled.set()
            self._stop.wait(min(retry, self._settings.heartbeat_interval) if waiting else self._pause())
            retry = min(2 * retry, _LAST_RETRY)
            silent = silent + 1 if not self._stop.is_set() and self._probe() else 0
        if silent:
            logger.warning("the engine is not ready any more: its caches are withdrawn")

    def _pause(self) -> float:
        return min(self._settings.heartbeat_interval, _LAST_RETRY)

    def _offered(self, kind: Kind, worker: Worker, signer: Signer | None) -> bool:
        """Return whether there is nothing more to do about a kind."""
        if self._stop.is_set():
            return False
        try:
            self._offer(kind, worker, signer)
        except CacheBusy as error:
            logger.info("%s: not offered yet, the cache is being written to: %s", kind.name, error)
            return False
        except ModelExpressError as error:
            logger.warning("%s: not offered: %s", kind.name, error)
        return True

    def _offer(self, kind: Kind, worker: Worker, signer: Signer | None) -> None:
        settings = self._settings
        root = kind.root(self._environ)
        if not root.is_dir():
            logger.info("%s: nothing to offer, there is no %s", kind.name, root)
            return
        identity = kind.identity(self._identity, compile_config_digest=settings.artifact_compile_config_digest)
        snapshot = take_snapshot(kind, root, settings.artifact_chunk_bytes)
        if not snapshot.manifest.files:
            snapshot.close()
            logger.info("%s: nothing to offer, %s is empty", kind.name, root)
            return
        publication = offer(
            snapshot, identity, worker=worker, node_rank=self._node_rank, signer=signer, settings=settings
        )
        with self._lock:
            self._publications[kind.name] = publication
        files, nbytes = len(snapshot.manifest.files), snapshot.manifest.total_bytes
        logger.info("%s: %d files (%.1f MB) are offered as %s", kind.name, files, nbytes / 1e6, identity.source_id)


def share_when_ready(
    identity: SourceIdentity,
    kinds: Iterable[Kind],
    settings: Settings | None = None,
    ready: Ready | None = None,
    *,
    brought: BroughtCaches | None = None,
    worker: Worker | None = None,
    node_rank: int = 0,
    device: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Sharing | None:
    """Offer the caches of an engine to others once it is ready.

    This never raises: what is wrong is logged with its reason.

    Args:
        identity: What the engine says of itself and its model.
        kinds: The caches that it uses.
        settings: Read from the environment when None.
        ready: Tells that the engine is ready; None: MX_ARTIFACT_READY_URL does.
        brought: What was brought: its use is logged when the engine is ready.
        worker: Serves the caches, beside what else it offers; None: one of its own.
        node_rank: Of this host within its replica.
        device: Selects the port of a worker of its own.
        environ: Variables that say where caches are; those of the process when None.

    Returns:
        What offers them, to be closed when the engine stops; None where nothing will be offered.
    """
    settings = settings or Settings.read()
    if reason := why_not(settings):
        logger.info("%s", reason)
        return None
    try:
        probe = _probe(settings, ready)
    except ConfigurationError as error:
        logger.warning("caches of compiled kernels are not offered: %s", error)
        return None
    return Sharing(
        identity,
        kinds,
        settings,
        probe,
        brought=brought,
        worker=worker,
        node_rank=node_rank,
        device=device,
        environ=environ,
    )


def _probe(settings: Settings, ready: Ready | None) -> Probe:
    """Return what asks whether the engine is ready.

    Raises:
        ConfigurationError: Nothing can be asked.
    """
    if isinstance(ready, threading.Event):
        return lambda: "" if ready.is_set() else "the engine has not said that it is ready"
    if ready is not None:
        return lambda: "" if ready() else "the engine says that it is not ready"
    if not settings.artifact_ready_url:
        raise ConfigurationError("nothing tells when the engine is ready: set MX_ARTIFACT_READY_URL")
    return UrlProbe(settings.artifact_ready_url)


def _signer(settings: Settings) -> Signer | None:
    return Signer.from_file(Path(settings.artifact_signing_key)) if settings.artifact_signing_key else None
