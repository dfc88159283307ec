"""The relays of one load: every rank is passed on while it is received, and for a while after."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from modelexpress.client import Client
from modelexpress.engines.trtllm.finding import Published, ranks_of
from modelexpress.engines.trtllm.rank_relay import RankRelay
from modelexpress.engines.trtllm.rank_room import RankRoom
from modelexpress.engines.trtllm.rank_worker import rank_worker
from modelexpress.errors import ModelExpressError, RegistryError
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for which those who still read may get no further before they are left alone."""

_SWEEP_SECONDS = 0.1
"""How often memory that readers have touched is let go of: so long they fill it."""

_ASK_SECONDS = 0.1
"""How often it is looked who still reads."""


class Relays:
    """Passes the ranks of a checkpoint on, until the block ends.

    Those who read when everything had arrived are served to their end, or until they get no further; who came later is
    not waited for. A block that ends with an error waits for nobody. Readers that are left go on elsewhere with what
    they have.

    Args:
        registry: HOST:PORT.
        model_name: As the source named it.
        published: What is received.
        settings: Ports, timeouts and limits.
    """

    def __init__(self, registry: str, model_name: str, published: Published, settings: Settings) -> None:
        self._registry = registry
        # Files cannot be handed over as memory can, and a network card would pin all of what it is to send.
        self._settings = settings.model_copy(update={"transport": "tcp"})
        self._identity = _identity(registry, model_name, published, settings)
        self._relays: list[RankRelay] = []
        self._reading: list[frozenset[str]] = []
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="mx-trtllm-sweep", daemon=True)

    def add(self, rank: int, room: RankRoom) -> RankRelay | None:
        """Return what passes a rank on; None, with a note in the log, where that cannot be.

        Args:
            rank: Which one.
            room: Where it is received.
        """
        if self._identity is None:
            return None
        try:
            # Readers are sent to any port, but one that somebody has named may be the only one that is let through.
            any_port = "worker_grpc_port" not in self._settings.model_fields_set
            worker = rank_worker(self._registry, rank, self._settings, any_port=any_port)
            try:
                relay = RankRelay(worker, self._identity, rank, room)
            except BaseException:  # whatever ends the load must not leave a server behind; it is raised again
                worker.close()
                raise
        except (ModelExpressError, OSError) as error:
            logger.warning("rank %d is not passed on to other targets: %s", rank, error)
            return None
        self._relays.append(relay)
        return relay

    def complete(self) -> None:
        """Note who reads now that everything has arrived: these are served to their end."""
        self._reading = [frozenset(relay.readers()) for relay in self._relays]

    def __enter__(self) -> Self:
        self._sweeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._see_off()
        finally:
            self._stop.set()
            self._sweeper.join()
            for relay in self._relays:
                relay.close()

    def _see_off(self) -> None:
        before, moved = self._progress(), time.monotonic()
        if before:
            logger.info("waiting until those who read from here are through: %d", len(before))
        while before and time.monotonic() - moved < PATIENCE:
            time.sleep(_ASK_SECONDS)
            if (now := self._progress()) != before:
                before, moved = now, time.monotonic()
        if before:
            logger.info("readers that got no further for %g s are left: %d", PATIENCE, len(before))

    def _progress(self) -> dict[tuple[int, str], int]:
        """Return how many bytes each of those has verified who are waited for."""
        return {
            (number, reader): done
            for number, (relay, waited) in enumerate(zip(self._relays, self._reading, strict=False))
            if waited
            for reader, done in relay.readers().items()
            if reader in waited
        }

    def _sweep(self) -> None:
        while not self._stop.wait(_SWEEP_SECONDS):
            for relay in tuple(self._relays):
                relay.sweep()


def _identity(registry: str, model_name: str, published: Published, settings: Settings) -> SourceIdentity | None:
    """Return a checkpoint's identity as its source has it; None, with a note in the log: nothing is passed on."""
    if settings.transport not in ("auto", "tcp"):
        logger.info("nothing is passed on to other targets: files go over tcp, MX_TRANSPORT is %s", settings.transport)
        return None
    why = "no source has said what it is"
    try:
        with Client(registry, timeout=settings.answer_timeout) as client:
            for ref in ranks_of(client, model_name, published.source_id, 0):
                found = client.get(ref.source_id, ref.worker_id)
                # Anybody may publish anything under any id.
                if found is not None and found[1].source_id == published.source_id:
                    return found[1]
    except RegistryError as error:
        why = str(error)
    logger.warning("nothing is passed on to other targets: %s", why)
    return None
