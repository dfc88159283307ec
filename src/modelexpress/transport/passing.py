"""Descriptors of memory on their way from process to process (SCM_RIGHTS, unix(7)).

The source sends them in batches; the target confirms each before the next one is sent, so that no side ever has
more than one batch in flight.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from modelexpress.errors import PeerLost, TransportUnavailable

BATCH = 253
"""SCM_MAX_FD of the kernel: descriptors in one message."""
_COUNT = struct.Struct("<H")
_DESCRIPTOR = struct.Struct("@i")
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


def receive_descriptors(sock: socket.socket, region_bytes: Sequence[int]) -> list[int]:
    """Return descriptors of regions of these sizes; the caller closes them.

    Raises:
        TransportUnavailable: What arrived is not such memory.
        PeerLost: The connection broke.
    """
    descriptors = receive_unchecked(sock, len(region_bytes))
    try:
        check_all(descriptors, region_bytes)
    except TransportUnavailable:
        close_all(descriptors)
        raise
    return descriptors


def check_all(descriptors: Sequence[int], region_bytes: Sequence[int]) -> None:
    """Raise TransportUnavailable unless every descriptor is one of at least so many bytes of memory."""
    for number, (descriptor, nbytes) in enumerate(zip(descriptors, region_bytes, strict=True)):
        if (problem := unfit(descriptor, nbytes)) is not None:
            raise TransportUnavailable(f"region {number} of the source is refused: {problem}")


def receive_unchecked(sock: socket.socket, count: int) -> list[int]:
    """Return so many descriptors, of whatever they are; the caller closes them.

    Raises:
        TransportUnavailable: Fewer arrived than were announced.
        PeerLost: The connection broke.
    """
    descriptors: list[int] = []
    try:
        while len(descriptors) < count:
            expected = min(BATCH, count - len(descriptors))
            descriptors += (batch := _receive_batch(sock, expected))
            if len(batch) != expected:
                raise TransportUnavailable(
                    f"{len(batch)} descriptors arrived, {expected} were expected; may this process open so many?"
                )
            sock.sendall(_CONFIRMATION)
    except BaseException as error:  # Ctrl-C, too, must leave no descriptor behind; it is raised again
        close_all(descriptors)
        if isinstance(error, OSError):
            raise PeerLost(f"the source did not hand over its memory: {error}") from error
        raise
    return descriptors


def unfit(descriptor: int, nbytes: int) -> str | None:
    """Return why a descriptor is not one of at least `nbytes` of memory, or None.

    Anything else, a file on a network for instance, could keep a thread that reads it waiting for ever.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return "it is no memfd"
    size = os.fstat(descriptor).st_size
    return None if size >= nbytes else f"it has {size} bytes and should have {nbytes}"


def read_only(descriptor: int) -> int:
    """Return a descriptor of the same memory that cannot write.

    Raises:
        OSError: It cannot be opened again.
    """
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def close_all(descriptors: list[int]) -> None:
    """Close descriptors, and forget them."""
    while descriptors:
        os.close(descriptors.pop())


def _receive_batch(sock: socket.socket, expected: int) -> list[int]:
    # Not socket.recv_fds: it ignores its flags, and descriptors would leak into every program that is started.
    room = socket.CMSG_SPACE(BATCH * _DESCRIPTOR.size)
    data, ancillary, _, _ = sock.recvmsg(_COUNT.size, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        descriptor
        for level, kind, content in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (descriptor,) in _DESCRIPTOR.iter_unpack(content[: len(content) // _DESCRIPTOR.size * _DESCRIPTOR.size])
    ]
    if data == _COUNT.pack(expected):
        return descriptors
    close_all(descriptors)
    raise ConnectionResetError("the connection ended early" if not data else "something else arrived")
