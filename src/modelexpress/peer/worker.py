"""A worker: what runs beside an engine to make its process a source of any number of materials."""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from modelexpress.client import Client
from modelexpress.errors import ConfigurationError
from modelexpress.identity import SourceIdentity
from modelexpress.peer.farewell import close_at_exit, closed, undisturbed
from modelexpress.peer.host import endpoint, host_id, is_loopback, new_worker_id, reachable_host
from modelexpress.peer.material import Material
from modelexpress.peer.publication import Publication, PublicationState
from modelexpress.peer.ready import Probe
from modelexpress.peer.relay import Relay
from modelexpress.peer.server import WorkerServer
from modelexpress.registry.auth import read_tokens
from modelexpress.settings import Settings
from modelexpress.transport import Transport, available
from modelexpress.wire.artifact import summary_of
from modelexpress.wire.p2p import identity_to_message
from modelexpress.wire.records import Member, SourceStatus, WorkerRecord
from modelexpress.wire.tls import ServerTls

logger = logging.getLogger(__name__)

HOST_TOPOLOGY = "modelexpress/host"
"""Key of a record's topology that holds the host id: targets prefer sources that share their memory."""

ENDPOINT_TOPOLOGY = "modelexpress/endpoint"
"""Key of a record's topology that holds HOST:PORT of the worker server: listings have the topology, but no address."""


class Worker:
    """One worker server and the publications of its materials.

    Everything is withdrawn by `close()`, at interpreter exit, and on SIGTERM.

    Args:
        registry: HOST:PORT of the registry; None takes it from the environment.
        device: Index of the accelerator that this worker drives; it selects the port (MX_WORKER_GRPC_PORT).
        settings: Read from the environment when None.
        transports: What materials are opened on; None: every one that works here.
        ready: Asks whether the engine beside it is ready: the registry is not told of anything before that; None: it
            is told at once.
        any_port: Another port than the one that `device` selects is as good: no warning when that one is taken.

    Raises:
        ConfigurationError: The worker server cannot listen, or the token or a TLS file cannot be read.
    """

    def __init__(
        self,
        registry: str | None = None,
        *,
        device: int = 0,
        settings: Settings | None = None,
        transports: Sequence[Transport] | None = None,
        ready: Probe | None = None,
        any_port: bool = False,
    ) -> None:
        settings = settings or Settings.read()
        registry = registry or settings.registry
        self.worker_id = new_worker_id()
        self._settings = settings
        self._ready = ready
        self._host = reachable_host(registry, settings.worker_host)
        everywhere = "::" if ":" in self._host else "0.0.0.0"
        bind = self._host if is_loopback(self._host) else everywhere
        port = settings.worker_grpc_port and settings.worker_grpc_port + device
        if transports is None:
            transports = available(settings, host=bind, advertised_host=self._host).transports
        tokens = read_tokens(Path(settings.auth_token_path)) if settings.auth_token_path else ()
        if not tokens and not is_loopback(bind):
            logger.warning("whoever reaches this worker may read its weights: set MX_AUTH_TOKEN_PATH to a token's file")
        self._server = WorkerServer(
            self.worker_id,
            transports,
            bind,
            port,
            tokens=tokens,
            reader_limit=settings.reader_limit,
            uplink=settings.uplink_limit,
            tls=_tls(settings),
            any_port=any_port,
        )
        self._client = Client(registry)
        self._publications: list[Publication] = []
        self._closing = False
        self._lock = threading.Lock()
        self._owner = os.getpid()
        close_at_exit(self)

    @property
    def publications(self) -> tuple[Publication, ...]:
        """What this worker has published, the oldest first."""
        return tuple(self._publications)

    def publishes(self, source_id: str) -> bool:
        """Return whether this worker offers a material to whoever asks the registry."""
        open_ones = (p for p in self._publications if p.state is not PublicationState.CLOSED)
        return any(publication.source_id == source_id for publication in open_ones)

    @property
    def port(self) -> int | None:
        """Port of the worker server; None once it is closed."""
        return self._server.port

    def publish(self, material: Material) -> Publication:
        """Offer a material, and keep it in the registry until the publication is closed.

        Raises:
            ConfigurationError: This worker offers one under the same identity, or is closed.
            IdentityError: The protocol cannot carry the identity.
            TransportUnavailable: No transport can offer its memory.
        """
        member = self.member
        identity_to_message(material.identity)  # else only the publication's thread would find out
        self._server.shelf.add(material)
        return self._announce(material, member)

    def relay(self, identity: SourceIdentity) -> Relay:
        """Announce that this worker is about to receive a material, and passes it on while it does.

        Raises:
            ConfigurationError: This worker offers one under the same identity, or is closed.
            IdentityError: The protocol cannot carry the identity.
        """
        member = self.member
        identity_to_message(identity)
        return Relay(self._server.shelf, identity, member, lambda material: self._announce(material, member))

    @property
    def member(self) -> Member:
        """This worker as others ask it.

        Raises:
            ConfigurationError: It is closed.
        """
        if self.port is None:
            raise self._is_closed()
        return Member(self.worker_id, endpoint(self._host, self.port))

    def _announce(self, material: Material, member: Member) -> Publication:
        """Keep in the registry what is on the shelf.

        Raises:
            ConfigurationError: This worker is closed, or being closed.
        """
        record = WorkerRecord(
            worker_id=member.worker_id,
            worker_rank=material.rank,
            status=SourceStatus.INITIALIZING,
            worker_grpc_endpoint=member.endpoint,
            accelerator=material.accelerator,
            topology={HOST_TOPOLOGY: host_id(), ENDPOINT_TOPOLOGY: member.endpoint},
            artifact=summary_of(material.artifact, material.rank) if material.artifact is not None else None,
        )
        with undisturbed(), self._lock:
            # Else what another thread closes at this moment would be READY for ever.
            if self._closing:
                self._server.shelf.remove(material.identity.source_id)
                raise self._is_closed()
            publication = Publication(
                self._server,
                self._client,
                material.identity,
                record,
                self._settings.heartbeat_interval,
                self._ready,
                self._settings.artifact_ready_timeout,
            )
            self._publications.append(publication)
        return publication

    def _is_closed(self) -> ConfigurationError:
        return ConfigurationError(f"worker {self.worker_id} is closed: make a new one")

    def close(self) -> None:
        """Withdraw every publication and stop the server. Closing twice is allowed, and nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        with undisturbed():
            with self._lock:
                self._closing = True
            for publication in self._publications:
                publication.close()
            self._server.close()
            self._client.close()
            closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tls(settings: Settings) -> ServerTls | None:
    """Return the TLS files of a worker that has a certificate; with authorities set, readers must show one, too."""
    if not settings.tls_cert or not settings.tls_key:
        return None
    authorities = Path(settings.tls_ca) if settings.tls_ca else None
    return ServerTls(certificate=Path(settings.tls_cert), key=Path(settings.tls_key), client_ca=authorities)
