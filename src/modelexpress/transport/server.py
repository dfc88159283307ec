"""A listening socket, its accept thread, and one thread for each connection; strangers cannot exhaust it."""

import logging
import os
import select
import socket
import threading
from collections.abc import Callable

from modelexpress.transport.fork import closed_in_children
from modelexpress.transport.stream import shut
from modelexpress.transport.verdict import Verdict

logger = logging.getLogger(__name__)

GREETING_SECONDS = 5.0
"""How long a connection may take to introduce itself."""
MAX_STRANGERS = 64
"""Connections that have not been let in yet; one more, and the oldest of them is dropped."""
MAX_CONNECTIONS = 512
"""Connections in all; further ones are dropped at once."""
GOODBYE_SECONDS = 2.0
"""How long an ending connection may take to hand over what is on its way, before it is cut."""
_PAUSE_SECONDS = 0.1


class Connection:
    """One accepted connection, its thread, and the way to end it from outside."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.verdict: Verdict | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def run(self, serve: Callable[["Connection"], None], name: str) -> None:
        """Serve the connection on a thread of its own."""
        # A daemon: a process that ends without closing its transports must not wait for a reader.
        self._thread = threading.Thread(target=serve, args=(self,), name=name, daemon=True)
        self._thread.start()

    def wait_readable(self) -> bool:
        """Return True when there is something to receive, and False when the connection is to end."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
        return self.verdict is None

    def end(self, verdict: Verdict) -> None:
        """Let the connection's thread finish what it is sending, tell the reader why, and end."""
        with self._lock:
            if not self._closed:
                self.verdict = verdict
                os.eventfd_write(self._wake, 1)

    def cut(self) -> None:
        """Break the connection off."""
        with self._lock:
            if not self._closed:
                shut(self.sock)

    def join(self) -> None:
        """Return when the thread has ended; a reader that does not take what is on its way is cut off."""
        if self._thread is None:
            return
        self._thread.join(GOODBYE_SECONDS)
        if self._thread.is_alive():
            self.cut()
            self._thread.join()

    def close(self) -> None:
        """Give the descriptors back; called at the end of the connection's own thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.sock.close()
                os.close(self._wake)


class Server:
    """Accepts connections until it is closed.

    Args:
        listening: A listening socket, which the server owns from now on.
        serve: Runs on the thread of each connection. It calls `welcome` once the peer has shown who it is, and
            raises OSError when the connection breaks.
        name: Prefix of the threads' names.
    """

    def __init__(self, listening: socket.socket, serve: Callable[[Connection], None], name: str) -> None:
        self._listening = closed_in_children(listening)
        self._serve = serve
        self._name = name
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}  # in the order in which they came
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self._thread.start()

    def welcome(self, connection: Connection) -> None:
        """Count a connection among those that have shown who they are."""
        with self._lock:
            self._strangers.pop(connection, None)

    def close(self) -> None:
        """Stop listening and cut every connection. Closing twice is allowed."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            connections = tuple(self._connections)
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._listening.close()
        os.close(self._wake)
        for connection in connections:
            connection.cut()
        for connection in connections:
            connection.join()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._listening.setblocking(False)
        while not self._closing:
            poll.poll()
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # Out of descriptors, most likely: without a pause this would spin until one is free.
                logger.warning("%s cannot accept a connection: %s", self._name, error)
                select.select([self._wake], [], [], _PAUSE_SECONDS)
                continue
            self._start(sock)

    def _start(self, sock: socket.socket) -> None:
        """Give a new connection its thread, if there is room for it."""
        try:
            connection = Connection(closed_in_children(sock))
        except OSError as error:
            logger.warning("%s cannot take a connection: %s", self._name, error)
            sock.close()
            return
        with self._lock:
            if self._closing or len(self._connections) >= MAX_CONNECTIONS:
                connection.close()
                return
            if len(self._strangers) >= MAX_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cut()
            self._strangers[connection] = None
            self._connections.add(connection)
        connection.run(self._run, f"{self._name}-connection")

    def _run(self, connection: Connection) -> None:
        try:
            self._serve(connection)
        except OSError as error:
            logger.debug("%s: a connection ended: %s", self._name, error)
        finally:
            connection.close()
            with self._lock:
                self._strangers.pop(connection, None)
                self._connections.discard(connection)
