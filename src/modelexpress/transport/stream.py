"""Sending and receiving many blocks of memory on one connection with few system calls."""

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

_TIMEVAL = struct.Struct("@ll")
_BLOCKS_PER_CALL = 1024  # IOV_MAX of Linux
_JOIN_BYTES = 16 << 10  # a TLS record


def set_stall_deadline(sock: socket.socket, seconds: float, tls: bool) -> None:
    """Let each wait on `sock` end with an OSError after `seconds` without a byte.

    Plain sockets wait within the kernel, which saves a system call each time; TimeoutError and BlockingIOError
    both mean that the deadline passed.
    """
    if tls:
        sock.settimeout(seconds)
        return
    sock.settimeout(None)
    whole = int(seconds)
    timeval = _TIMEVAL.pack(whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End whatever waits on a connection, here and at the peer; a broken one is left as it is."""
    with contextlib.suppress(OSError):
        # Not the method of SSLSocket: that one switches to plain reading, under a thread that still receives.
        socket.socket.shutdown(sock, how)


def send_all(sock: socket.socket, blocks: Sequence[memoryview], tls: bool) -> None:
    """Send every block in order; `tls` says whether the socket encrypts.

    Raises:
        OSError: The connection broke, or the peer took nothing for the stall deadline.
    """
    if tls:
        for block in _joined(blocks):
            sock.sendall(block)
        return
    for start in range(0, len(blocks), _BLOCKS_PER_CALL):
        left = list(blocks[start : start + _BLOCKS_PER_CALL])
        while left:
            sent = sock.sendmsg(left)
            left = _without(left, sent)


def receive_all(sock: socket.socket, blocks: Sequence[memoryview], tls: bool) -> None:
    """Fill every block in order; `tls` says whether the socket encrypts.

    Raises:
        OSError: The connection broke or ended, or nothing came for the stall deadline.
    """
    if tls:
        for block in blocks:
            _receive_block(sock, block)
        return
    for start in range(0, len(blocks), _BLOCKS_PER_CALL):
        left = list(filter(None, blocks[start : start + _BLOCKS_PER_CALL]))
        while left:
            count = sock.recvmsg_into(left)[0]
            if count == 0:
                raise ConnectionResetError("the connection ended early")
            left = _without(left, count)


def _joined(blocks: Sequence[memoryview]) -> Iterator[memoryview]:
    """Yield the same bytes in fewer blocks: every call that encrypts makes records of its own."""
    small = bytearray()
    for block in blocks:
        if len(block) < _JOIN_BYTES:
            small += block
            continue
        yield memoryview(small)
        small = bytearray()
        yield block
    yield memoryview(small)


def _receive_block(sock: socket.socket, block: memoryview) -> None:
    while block:
        count = sock.recv_into(block)
        if count == 0:
            raise ConnectionResetError("the connection ended early")
        block = block[count:]


def _without(blocks: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of `blocks` after their first `count` bytes."""
    for number, block in enumerate(blocks):
        if count < len(block):
            return [block[count:], *blocks[number + 1 :]]
        count -= len(block)
    return []
