"""The worker server: the one gRPC port of a worker, for all of its materials."""

import errno
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc

from modelexpress.errors import ConfigurationError
from modelexpress.peer.admission import TokenGate
from modelexpress.peer.host import endpoint
from modelexpress.peer.services import PeerService, WorkerService
from modelexpress.peer.shelf import LEASE_TTL, MOST_LEASES, Shelf
from modelexpress.transport import Transport
from modelexpress.wire import p2p_pb2_grpc, peer_pb2_grpc
from modelexpress.wire.tls import ServerTls

logger = logging.getLogger(__name__)

# Each lease may stream one answer, and a stream holds a thread for as long as its reader takes: the others are for
# calls that are short. Threads are started when they are needed.
_CALLS = MOST_LEASES + 32
_OPTIONS = (
    # Two workers must never share a port: readers would reach either at random.
    ("grpc.so_reuseport", 0),
    # Requests are small; manifests are large answers.
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_send_message_length", 256 << 20),
    # Connections that say nothing are dropped: at first, and later when they make no calls.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


class WorkerServer:
    """Serves the materials on a shelf until it is closed.

    Args:
        worker_id: This worker's id.
        transports: What the materials are opened on; closed with the server.
        host: The address to bind.
        port: The port to bind; when it is taken, a free one is used and a warning says so. 0: any free one.
        lease_ttl: Seconds that a lease outlives the last word of its reader.
        tokens: Bearer tokens, one of which callers must send; empty: anyone may call.
        reader_limit: Readers of one material at once, as long as others can read from these.
        uplink: Bytes a second that all readers together may read; 0: no limit.
        tls: Files for TLS; None speaks plain text.
        any_port: Another port is as good: no warning when `port` is taken.

    Raises:
        ConfigurationError: The address cannot be bound, or a TLS file cannot be read.
    """

    def __init__(
        self,
        worker_id: str,
        transports: Sequence[Transport],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        lease_ttl: float = LEASE_TTL,
        tokens: tuple[str, ...] = (),
        reader_limit: int = 1,
        uplink: int = 0,
        tls: ServerTls | None = None,
        any_port: bool = False,
    ) -> None:
        self.shelf = Shelf(worker_id, transports, lease_ttl, reader_limit=reader_limit, uplink=uplink)
        self._transports = tuple(transports)
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS, thread_name_prefix="mx-worker"),
            interceptors=[TokenGate(tokens)] if tokens else None,
            options=_OPTIONS,
            maximum_concurrent_rpcs=_CALLS,
        )
        peer_pb2_grpc.add_PeerServiceServicer_to_server(PeerService(self.shelf), self._server)
        p2p_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(self.shelf), self._server)
        if port and _is_taken(host, port):
            level = logging.DEBUG if any_port else logging.WARNING
            logger.log(level, "port %d of the worker server is taken; using a free one (MX_WORKER_GRPC_PORT)", port)
            port = 0
        self._port: int | None = _bind(self._server, host, port, tls.credentials() if tls else None)
        self._server.start()

    @property
    def port(self) -> int | None:
        """The bound port; None once the server is closed."""
        return self._port

    def close(self) -> None:
        """Withdraw everything and stop: no port, no registrations. Closing twice is allowed."""
        if self._port is None:
            return
        self._port = None
        self.shelf.close()
        self._server.stop(grace=None).wait()
        for transport in self._transports:
            transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_taken(host: str, port: int) -> bool:
    """Return whether somebody listens on a port; gRPC would print lines of its own on finding that out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # gRPC says of other errors what they are
    return False


def _bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(endpoint(host, port), credentials)
        return server.add_insecure_port(endpoint(host, port))
    except RuntimeError as error:
        if port == 0:
            raise ConfigurationError(f"the worker server cannot listen on {host}: {error}") from error
        logger.warning("port %d of the worker server is taken; using a free one (MX_WORKER_GRPC_PORT)", port)
        return _bind(server, host, 0, credentials)
