"""What `local` and `tcp` share on the side of the source: exports behind one server, opened by greeting."""

import os
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable

from modelexpress.errors import AccessDenied, TransportUnavailable
from modelexpress.transport.base import Export
from modelexpress.transport.gate import Gate
from modelexpress.transport.greeting import EXPORT_ID_BYTES, receive_greeting
from modelexpress.transport.server import GOODBYE_SECONDS, GREETING_SECONDS, Connection, Server
from modelexpress.transport.stream import shut
from modelexpress.transport.verdict import Verdict, encode_answer


class ServedExport(Export):
    """An export that a `Reception` serves; what is said after the greeting is up to the transport."""

    def __init__(self, reception: "Reception") -> None:
        self.export_id = os.urandom(EXPORT_ID_BYTES)
        self.gate = Gate()
        self._reception = reception

    @abstractmethod
    def serve(self, connection: Connection) -> None:
        """Serve a reader that was let in, until it leaves or `connection.verdict` is set.

        Raises:
            OSError: The connection broke.
        """

    @abstractmethod
    def release(self) -> None:
        """Give back what the export holds; nobody reads any more. Releasing twice is allowed."""

    def grant(self, token: str) -> None:
        self.gate.grant(token)

    def revoke(self, token: str) -> None:
        self.gate.revoke(token)

    def close(self) -> None:
        self._reception.forget(self)
        self.gate.close()
        self.release()


class Reception:
    """The exports of one transport and the server in front of them.

    Args:
        listen: Makes the listening socket; called with the first export.
        prepare: Makes of an accepted connection the one that is spoken on; raises AccessDenied to refuse it.
        name: Prefix of the threads' names.
    """

    def __init__(self, listen: Callable[[], socket.socket], prepare: Callable[[Connection], None], name: str) -> None:
        self._listen = listen
        self._prepare = prepare
        self._name = name
        self._lock = threading.Lock()
        self._exports: dict[bytes, ServedExport] = {}
        self._server: Server | None = None
        self._closed = False
        self._owner = os.getpid()

    def add(self, export: ServedExport) -> None:
        """Serve an export; the first one starts the server.

        Raises:
            TransportUnavailable: The transport was closed, or nothing can be listened on.
        """
        with self._lock:
            if self._closed:
                raise TransportUnavailable(f"the {self._name} transport was closed; make a new one")
            if self._server is None:
                self._server = Server(self._listen(), self._serve, f"mx-{self._name}")
            self._exports[export.export_id] = export

    def forget(self, export: ServedExport) -> None:
        """Serve an export no more; its connections go on."""
        with self._lock:
            self._exports.pop(export.export_id, None)

    def close(self) -> None:
        """Close every export, then the server. Closing twice is allowed."""
        if os.getpid() != self._owner:
            return  # a forked child has none of the threads, and must not disturb its parent's
        with self._lock:
            self._closed = True
            exports = tuple(self._exports.values())
            server, self._server = self._server, None
        for export in exports:
            export.close()
        if server is not None:
            server.close()

    def _serve(self, connection: Connection) -> None:
        try:
            export = self._open(connection)
        except AccessDenied as error:
            _refuse(connection, Verdict.DENIED, str(error))
        except TransportUnavailable:
            _refuse(connection, Verdict.MALFORMED)
        else:
            if export is not None:
                _serve_and_leave(export, connection)

    def _open(self, connection: Connection) -> ServedExport | None:
        """Return the export that the peer may read; None when it was refused."""
        deadline = time.monotonic() + GREETING_SECONDS
        connection.sock.settimeout(GREETING_SECONDS)
        self._prepare(connection)
        greeting = receive_greeting(connection.sock, deadline)
        export = self._exports.get(greeting.export_id)
        verdict = Verdict.WITHDRAWN if export is None else export.gate.admit(greeting.token, connection)
        if export is None or verdict is not Verdict.GRANTED:
            _refuse(connection, verdict)
            return None
        if (server := self._server) is not None:
            server.welcome(connection)
        return export


def _serve_and_leave(export: ServedExport, connection: Connection) -> None:
    """Serve a reader, tell it why when it is the source that ends it, and give the export up."""
    try:
        export.serve(connection)
        if connection.verdict is not None:
            connection.sock.sendall(encode_answer(connection.verdict))
    finally:
        export.gate.leave(connection)
    _hang_up(connection.sock)


def _refuse(connection: Connection, verdict: Verdict, message: str = "") -> None:
    connection.sock.settimeout(GOODBYE_SECONDS)
    connection.sock.sendall(encode_answer(verdict, message))
    _hang_up(connection.sock)


def _hang_up(sock: socket.socket) -> None:
    """Wait a moment for the peer to hang up: closing first could destroy what it has not read yet."""
    shut(sock, socket.SHUT_WR)
    deadline = time.monotonic() + GOODBYE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(4096):
            return
