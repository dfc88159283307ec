"""The other agents that this process's agent is connected to."""

import threading
from collections import OrderedDict
from contextlib import suppress

from modelexpress.errors import PeerLost, TransportError, TransportUnavailable
from modelexpress.transport.nixl_native import NativeAgent

IDLE_PEERS = 16
"""Peers that stay connected although nobody reads from them.

Removing a peer and adding it again leaves a socket behind on both sides until one of the processes ends (measured:
50 sockets after 50 times), and takes some 20 ms; kept, it costs neither.
"""
RENEW_AFTER = 256
"""After so many openings a peer is removed when idle: what is known of its earlier exports goes with it."""


class Peers:
    """Counts the readers of each peer, and removes peers that nobody needs.

    Args:
        native: The agent.
        idle: How many peers stay connected although nobody reads from them.
    """

    def __init__(self, native: NativeAgent, idle: int = IDLE_PEERS) -> None:
        self._native = native
        self._most_idle = idle
        self._lock = threading.Lock()
        self._readers: dict[str, int] = {}
        self._openings: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._left: dict[str, list[int]] = {}
        self._unwanted: set[str] = set()

    def connect(self, name: str, *metadata: bytes) -> None:
        """Make a peer and the memory that `metadata` describes readable until `disconnect`.

        Raises:
            TransportUnavailable: The metadata is not that peer's, or the two processes have no backend in common.
            PeerLost: The agent was ended.
        """
        with self._lock:
            self._tidy()
            self._unwanted.discard(name)
            if name != self._native.name:  # an agent reads its own memory without being told of it
                for described in metadata:
                    if (found := self._native.add_peer(described)) != name:
                        raise TransportUnavailable(f"the source's metadata is that of agent {found}, not of {name}")
            self._readers[name] = self._readers.get(name, 0) + 1
            self._openings[name] = self._openings.get(name, 0) + 1
            self._idle.pop(name, None)

    def disconnect(self, name: str, *, lost: bool) -> None:
        """Count one reader less; none of its transfers is left. A `lost` peer does not stay connected."""
        with self._lock:
            self._tidy()
            self._readers[name] -= 1
            if self._readers[name] > 0:
                return
            del self._readers[name]
            if lost or self._openings[name] >= RENEW_AFTER:
                self._remove(name)
                return
            self._idle[name] = None
            if len(self._idle) > self._most_idle:
                self._remove(self._idle.popitem(last=False)[0])

    def leave(self, name: str, handle: int) -> None:
        """Release the handle of a transfer that nobody waits for any more, now if it is over, else when it is.

        Until then its peer stays, also when `disconnect` calls it lost: UCX looks at what it knows of the peer when
        the transfer goes on. Whoever connects or disconnects any peer looks whether it is over.
        """
        with self._lock:
            self._left.setdefault(name, []).append(handle)
            self._tidy()

    def _tidy(self) -> None:
        for name, handles in tuple(self._left.items()):
            self._left[name] = [handle for handle in handles if not self._released(handle)]
            if not self._left[name]:
                del self._left[name]
                if name in self._unwanted:
                    self._remove(name)

    def _released(self, handle: int) -> bool:
        with suppress(TransportError):  # one that failed is over, and so are all when the agent has ended
            if not self._native.landed(handle):
                return False
        with suppress(TransportError):
            self._native.release(handle)
        return True

    def _remove(self, name: str) -> None:
        if name in self._left:
            self._unwanted.add(name)
            return
        self._unwanted.discard(name)
        del self._openings[name]
        if name != self._native.name:
            with suppress(PeerLost):  # the agent has ended, and its connections with it
                self._native.remove_peer(name)
