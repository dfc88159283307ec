"""Who may read one export: the tokens that were granted, and the connections that were opened with them."""

import hmac
import os
import threading

from modelexpress.transport.server import GOODBYE_SECONDS, Connection
from modelexpress.transport.verdict import Verdict


class Gate:
    """Lets connections in by token and ends them when the token, or the whole export, goes."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._tokens: set[bytes] = set()
        self._admitted: dict[Connection, bytes] = {}
        self._closed = False
        self._owner = os.getpid()

    def grant(self, token: str) -> None:
        """Let connections that show `token` in."""
        with self._lock:
            self._tokens.add(token.encode())

    def admit(self, token: bytes, connection: Connection) -> Verdict:
        """Let a connection in or say why not. One that was let in must `leave`."""
        with self._lock:
            if self._closed:
                return Verdict.WITHDRAWN
            # Every token is compared, and each in constant time, so that timing tells nothing about any of them.
            if not sum(hmac.compare_digest(token, granted) for granted in self._tokens):
                return Verdict.DENIED
            self._admitted[connection] = token
            return Verdict.GRANTED

    def leave(self, connection: Connection) -> None:
        """Forget a connection that touches the memory no more."""
        with self._lock:
            self._admitted.pop(connection, None)
            self._lock.notify_all()

    def revoke(self, token: str) -> None:
        """Refuse `token` from now on, and return when its connections have left."""
        secret = token.encode()
        with self._lock:
            self._tokens.discard(secret)
            self._end([each for each, shown in self._admitted.items() if shown == secret], Verdict.DENIED)

    def close(self) -> None:
        """Refuse everybody from now on, and return when every connection has left."""
        with self._lock:
            self._closed = True
            self._end(list(self._admitted), Verdict.WITHDRAWN)

    def _end(self, connections: list[Connection], verdict: Verdict) -> None:
        """Ask connections to leave; one whose reader does not take what is on its way is cut."""
        if os.getpid() != self._owner:
            return  # a forked child has none of the threads that serve them, and must not disturb its parent's
        for connection in connections:
            connection.end(verdict)
        if not self._lock.wait_for(lambda: self._admitted.keys().isdisjoint(connections), GOODBYE_SECONDS):
            for connection in self._admitted.keys() & set(connections):
                connection.cut()
            self._lock.wait_for(lambda: self._admitted.keys().isdisjoint(connections))
