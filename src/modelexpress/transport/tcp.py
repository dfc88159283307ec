"""The transport `tcp`: several connections, from the page cache of the source straight into the destinations."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelexpress.errors import PeerLost, TransferTimeout, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Export, LinkLimit, Reader, Transport
from modelexpress.transport.fork import closed_in_children
from modelexpress.transport.greeting import Greeting, greet
from modelexpress.transport.limits import link_limit
from modelexpress.transport.reception import Reception
from modelexpress.transport.server import Connection
from modelexpress.transport.tcp_descriptor import TcpDescriptor
from modelexpress.transport.tcp_reader import TcpReader
from modelexpress.transport.tcp_source import TcpExport

if TYPE_CHECKING:
    import ssl

_BACKLOG = 128


class TcpTransport(Transport):
    """Moves bytes between any two processes that can open a connection.

    Args:
        host: Address on which a source listens.
        port: Port on which a source listens; 0: any free one.
        advertised_host: Name under which targets reach the source; empty: `host`.
        streams: Connections of one reader.
        stall_timeout: Seconds without a byte after which the other side counts as lost.
        server_tls: Makes a source encrypt, with this certificate.
        client_tls: How a target checks the certificate of a source that encrypts.
    """

    name = "tcp"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertised_host: str = "",
        streams: int = 4,
        stall_timeout: float = 10.0,
        server_tls: "ssl.SSLContext | None" = None,
        client_tls: "ssl.SSLContext | None" = None,
    ) -> None:
        self._host = host
        self._port = port
        self._advertised_host = advertised_host or host
        self._streams = streams
        self._stall_timeout = stall_timeout
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._reception = Reception(self._listen, self._prepare, self.name)

    def unavailable(self) -> str | None:
        try:
            socket.create_server((self._host, 0), family=_family(self._host)).close()
        except OSError as error:
            return f"{self._host} cannot be listened on: {error}"
        return None

    def export(self, regions: Sequence[Region]) -> Export:
        export = TcpExport(self._reception, regions, self._stall_timeout, self._server_tls is not None)
        try:
            self._reception.add(export)
        except TransportUnavailable:
            export.release()
            raise
        export.place(self._advertised_host, self._port)
        return export

    def open(self, descriptor: bytes, token: str) -> Reader:
        source = TcpDescriptor.parse(descriptor)
        greeting = Greeting(bytes.fromhex(source.export), token.encode())
        with ExitStack() as undo:
            sockets = [self._connect(source, greeting, undo)]
            while len(sockets) < self._streams:
                try:
                    sockets.append(self._connect(source, greeting, undo))
                except TransportUnavailable:
                    break  # the source has no room for more: fewer will do
            undo.pop_all()
        return TcpReader(sockets, source.region_bytes, self._stall_timeout, source.tls)

    def limit(self, descriptor: bytes) -> LinkLimit | None:
        source = TcpDescriptor.parse(descriptor)
        return link_limit(source.host, source.port)

    def close(self) -> None:
        self._reception.close()

    def _listen(self) -> socket.socket:
        try:
            listening = socket.create_server((self._host, self._port), family=_family(self._host), backlog=_BACKLOG)
        except OSError as error:
            raise TransportUnavailable(f"{self._host}:{self._port} cannot be listened on: {error}") from error
        self._port = listening.getsockname()[1]
        return listening

    def _prepare(self, connection: Connection) -> None:
        _tune(connection.sock)
        if self._server_tls is not None:
            # In two steps, so that the connection can be cut while the peer delays the handshake.
            sock = self._server_tls.wrap_socket(connection.sock, server_side=True, do_handshake_on_connect=False)
            connection.sock = closed_in_children(sock)
            sock.do_handshake()

    def _connect(self, source: TcpDescriptor, greeting: Greeting, undo: ExitStack) -> socket.socket:
        """Return a connection on which the source let this reader in; `undo` closes it."""
        address = f"{source.host}:{source.port}"
        try:
            sock = socket.create_connection((source.host, source.port), timeout=self._stall_timeout)
        except ConnectionRefusedError as error:
            raise PeerLost(f"nothing listens on {address} any more") from error
        except (OSError, UnicodeError) as error:
            raise TransportUnavailable(f"{address} cannot be reached: {error}") from error
        undo.enter_context(sock)
        _tune(sock)
        if source.tls:
            sock = undo.enter_context(self._encrypt(sock, source.host))
        greet(closed_in_children(sock), greeting, self._stall_timeout)
        return sock

    def _encrypt(self, sock: socket.socket, host: str) -> socket.socket:
        if self._client_tls is None:
            raise TransportUnavailable("the source encrypts; give this transport a TLS context (client_tls)")
        try:
            return self._client_tls.wrap_socket(sock, server_hostname=host)
        except TimeoutError as error:
            raise TransferTimeout(f"the source did not answer within {self._stall_timeout:g} s") from error
        except OSError as error:
            raise TransportUnavailable(f"no encrypted connection to {host}: {error}") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tune(sock: socket.socket) -> None:
    """Send small requests at once, and notice a host that vanished while nothing was asked of it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
