"""Connections that a forked child must not keep: while it held them, its parent's death would go unnoticed."""

import os
import socket
import weakref
from typing import TypeVar

_Socket = TypeVar("_Socket", bound=socket.socket)
_sockets: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def closed_in_children(sock: _Socket) -> _Socket:
    """Return `sock`, which children forked from now on close at once; nothing is said to the peer."""
    _sockets.add(sock)
    return sock


def _close_inherited() -> None:
    for sock in tuple(_sockets):
        sock.close()


os.register_at_fork(after_in_child=_close_inherited)
