"""Sending and receiving many blocks of memory on one connection with few system calls."""

import socket
import struct
from collections.abc import Sequence

import os

WA = socket.MSG_WAITALL if os.environ.get("WA") else 0
_TIMEVAL = struct.Struct("@ll")
_BLOCKS_PER_CALL = 1024  # IOV_MAX of Linux


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


def send_all(sock: socket.socket, blocks: Sequence[memoryview], tls: bool, *, more: bool) -> None:
    """Send every block in order.

    Args:
        sock: A connected socket.
        blocks: What to send.
        tls: Whether the socket encrypts.
        more: Whether other bytes follow at once, so that a small rest need not travel alone.

    Raises:
        OSError: The connection broke, or the peer took nothing for the stall deadline.
    """
    if tls:
        sock.sendall(b"".join(blocks))
        return
    for start in range(0, len(blocks), _BLOCKS_PER_CALL):
        left = list(blocks[start : start + _BLOCKS_PER_CALL])
        while left:
            sent = sock.sendmsg(left, (), socket.MSG_MORE if more else 0)
            left = _without(left, sent)


def receive_all(sock: socket.socket, blocks: Sequence[memoryview], tls: bool) -> None:
    """Fill every block in order.

    Raises:
        OSError: The connection broke or ended, or nothing came for the stall deadline.
    """
    if tls or len(blocks) == 1:
        for block in blocks:
            _receive_block(sock, block)
        return
    for start in range(0, len(blocks), _BLOCKS_PER_CALL):
        left = list(blocks[start : start + _BLOCKS_PER_CALL])
        while left:
            count = sock.recvmsg_into(left)[0]
            if count == 0:
                raise ConnectionResetError("the connection ended early")
            left = _without(left, count)


def _receive_block(sock: socket.socket, block: memoryview) -> None:
    while block:
        count = sock.recv_into(block, len(block), WA)
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
