"""Descriptors of memory on their way from process to process (SCM_RIGHTS, unix(7)).

The source sends them in batches; the target maps a batch and confirms it before the next one is sent, so that
neither side ever has more than one batch in flight.
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BATCH = 253
"""SCM_MAX_FD of the kernel: descriptors in one message."""
_COUNT = struct.Struct("<H")
_CONFIRMATION = b"\x01"


def send_descriptors(sock: socket.socket, descriptors: Sequence[int]) -> None:
    """Pass `descriptors` in order.

    Raises:
        OSError: The connection broke, or the reader did not confirm a batch.
    """
    for start in range(0, len(descriptors), BATCH):
        batch = descriptors[start : start + BATCH]
        socket.send_fds(sock, [_COUNT.pack(len(batch))], list(batch))
        if sock.recv(1) != _CONFIRMATION:
            raise ConnectionResetError("the reader did not confirm the descriptors")


@contextmanager
def receive_batch(sock: socket.socket, expected: int) -> Iterator[list[int]]:
    """Yield the next `expected` descriptors; they are closed in the end, and the source may go on.

    Raises:
        OSError: The connection broke, or something else arrived.
    """
    data, descriptors, flags, _ = socket.recv_fds(sock, _COUNT.size, BATCH, socket.MSG_CMSG_CLOEXEC)
    try:
        truncated = bool(flags & socket.MSG_CTRUNC)
        if truncated or data != _COUNT.pack(expected) or len(descriptors) != expected:
            raise ConnectionResetError(
                f"{len(descriptors)} descriptors arrived, {expected} were expected"
                + ("; this process may not open more" if truncated else "")
            )
        yield descriptors
        sock.sendall(_CONFIRMATION)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def read_only(descriptor: int) -> int:
    """Return a descriptor of the same memory that cannot write.

    Raises:
        OSError: It cannot be opened again.
    """
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
