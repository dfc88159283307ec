"""A port that readers of other hosts come to, and the way there, encrypted where that is wanted."""

import contextlib
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelexpress.errors import PeerLost, TransferTimeout, TransportUnavailable
from modelexpress.transport.fork import closed_in_children
from modelexpress.transport.greeting import Greeting, greet
from modelexpress.transport.server import Connection

if TYPE_CHECKING:
    import ssl

_BACKLOG = 128


class Door:
    """Where this process listens, and how it calls at the doors of others.

    Args:
        host: Address on which a source listens.
        port: Port on which a source listens; 0: any free one.
        timeout: Seconds that the other side may take to answer.
        server_tls: Makes a source encrypt, with this certificate.
        client_tls: How a target checks the certificate of a source that encrypts.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float,
        server_tls: "ssl.SSLContext | None",
        client_tls: "ssl.SSLContext | None",
    ) -> None:
        self._host = host
        self.port = port
        self._timeout = timeout
        self._server_tls = server_tls
        self._client_tls = client_tls

    @property
    def encrypts(self) -> bool:
        """Whether a source behind this door encrypts."""
        return self._server_tls is not None

    def unavailable(self) -> str | None:
        """Return why nothing can listen here, or None."""
        try:
            socket.create_server((self._host, 0), family=_family(self._host)).close()
        except OSError as error:
            return f"{self._host} cannot be listened on: {error}"
        return None

    def listen(self) -> socket.socket:
        """Return a listening socket; `port` is its port from now on.

        Raises:
            TransportUnavailable: The address or the port cannot be had.
        """
        try:
            listening = socket.create_server((self._host, self.port), family=_family(self._host), backlog=_BACKLOG)
        except OSError as error:
            raise TransportUnavailable(f"{self._host}:{self.port} cannot be listened on: {error}") from error
        self.port = listening.getsockname()[1]
        return listening

    def prepare(self, connection: Connection) -> None:
        """Make an accepted connection ready to be spoken on.

        Raises:
            OSError: The peer broke off, or does not speak TLS.
        """
        _tune(connection.sock)
        if self._server_tls is not None:
            # In two steps, so that the connection can be cut while the peer delays the handshake.
            sock = self._server_tls.wrap_socket(connection.sock, server_side=True, do_handshake_on_connect=False)
            connection.sock = closed_in_children(sock)
            sock.do_handshake()

    def call(self, host: str, port: int, tls: bool, greeting: Greeting, undo: ExitStack) -> socket.socket:
        """Return a connection to a source, which has let this reader in; `undo` closes it.

        Raises:
            AccessDenied, RegionWithdrawn, TransportUnavailable: The source said no, or cannot be reached.
            PeerLost: The source has gone.
            TransferTimeout: The source did not answer in time.
        """
        try:
            sock = socket.create_connection((host, port), timeout=self._timeout)
        except ConnectionRefusedError as error:
            raise PeerLost(f"nothing listens on {host}:{port} any more") from error
        except (OSError, UnicodeError) as error:
            raise TransportUnavailable(f"{host}:{port} cannot be reached: {error}") from error
        undo.enter_context(sock)
        _tune(sock)
        if tls:
            sock = undo.enter_context(self._encrypt(sock, host))
        greet(closed_in_children(sock), greeting, self._timeout)
        return sock

    def _encrypt(self, sock: socket.socket, host: str) -> socket.socket:
        if self._client_tls is None:
            raise TransportUnavailable("the source encrypts; give this transport a TLS context (client_tls)")
        try:
            return self._client_tls.wrap_socket(sock, server_hostname=host)
        except TimeoutError as error:
            raise TransferTimeout(f"the source did not answer within {self._timeout:g} s") from error
        except OSError as error:
            raise TransportUnavailable(f"no encrypted connection to {host}: {error}") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tune(sock: socket.socket) -> None:
    """Set what a connection of this package needs.

    Small messages are sent at once, and a host that vanished while nothing was asked of it is noticed. Within one
    host there is no queue on the way that a sender must find out about: the simplest congestion control, which every
    kernel has, takes a fifth less processor time there than one that paces (bbr), which may be the default.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if sock.getsockname()[0] == sock.getpeername()[0]:
        with contextlib.suppress(OSError):  # a matter of speed only, and not allowed everywhere
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
