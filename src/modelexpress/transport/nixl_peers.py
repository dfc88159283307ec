"""The other agents that this process's agent is connected to."""

import threading
from collections import OrderedDict
from contextlib import suppress

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.transport.nixl_native import NativeAgent

IDLE_PEERS = 16
"""Peers that stay connected although nobody reads from them.

Removing a peer and adding it again leaves a socket behind on both sides until one of the processes ends (measured:
50 sockets after 50 times), and takes some 20 ms; kept, it costs neither.
"""
RENEW_AFTER = 256
"""After so many openings a peer is removed when idle: what is known of its earlier exports goes with it."""


class Peers:
    """Counts the readers of each peer, and removes peers that nobody needs."""

    def __init__(self, native: NativeAgent) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._readers: dict[str, int] = {}
        self._openings: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()

    def connect(self, name: str, metadata: bytes) -> None:
        """Make a peer and the memory that `metadata` describes readable until `disconnect`.

        Raises:
            TransportUnavailable: The metadata is not that peer's, or the two processes have no backend in common.
            PeerLost: The agent was ended.
        """
        with self._lock:
            if name != self._native.name:  # an agent reads its own memory without being told of it
                found = self._native.add_peer(metadata)
                if found != name:
                    raise TransportUnavailable(f"the source's metadata is that of agent {found}, not of {name}")
            self._readers[name] = self._readers.get(name, 0) + 1
            self._openings[name] = self._openings.get(name, 0) + 1
            self._idle.pop(name, None)

    def disconnect(self, name: str, *, lost: bool) -> None:
        """Count one reader less; none of its transfers is left. A `lost` peer does not stay connected."""
        with self._lock:
            self._readers[name] -= 1
            if self._readers[name] > 0:
                return
            del self._readers[name]
            if lost or self._openings[name] >= RENEW_AFTER:
                self._remove(name)
                return
            self._idle[name] = None
            if len(self._idle) > IDLE_PEERS:
                self._remove(self._idle.popitem(last=False)[0])

    def _remove(self, name: str) -> None:
        del self._openings[name]
        if name != self._native.name:
            with suppress(PeerLost):  # the agent has ended, and its connections with it
                self._native.remove_peer(name)
