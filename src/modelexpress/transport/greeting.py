"""The first words of every connection: the reader names an export and shows its token, the source answers."""

import socket
import struct
import time
from dataclasses import dataclass

from modelexpress.errors import PeerLost, TransferTimeout, TransportUnavailable
from modelexpress.transport.verdict import ANSWER_BYTES, Verdict, decode_answer, error_of

EXPORT_ID_BYTES = 16
MAX_TOKEN_BYTES = 1024
_MAGIC = b"MXTR"
_VERSION = 1
_HEAD = struct.Struct(f"<4sH{EXPORT_ID_BYTES}sH")


@dataclass(frozen=True)
class Greeting:
    """What a reader wants to open, and the secret that lets it in."""

    export_id: bytes
    token: bytes

    def encode(self) -> bytes:
        """Return the greeting as it travels."""
        return _HEAD.pack(_MAGIC, _VERSION, self.export_id, len(self.token)) + self.token


def receive_greeting(sock: socket.socket, deadline: float) -> Greeting:
    """Return what the peer says first.

    Args:
        sock: A fresh connection; its timeout is changed.
        deadline: When the greeting must be complete, on the monotonic clock.

    Raises:
        TransportUnavailable: It is not a greeting of this protocol and version.
        OSError: The connection broke or the deadline passed.
    """
    magic, version, export_id, length = _HEAD.unpack(receive_exactly(sock, _HEAD.size, deadline))
    if magic != _MAGIC or version != _VERSION or length > MAX_TOKEN_BYTES:
        raise TransportUnavailable("not a greeting of this protocol and version")
    return Greeting(export_id, receive_exactly(sock, length, deadline))


def greet(sock: socket.socket, greeting: Greeting, timeout: float) -> None:
    """Introduce a reader to a source and return once it is let in.

    Raises:
        AccessDenied, RegionWithdrawn, TransportUnavailable: The source said no.
        PeerLost: The source closed the connection.
        TransferTimeout: The source did not answer within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    try:
        sock.settimeout(timeout)
        sock.sendall(greeting.encode())
        verdict, length = decode_answer(receive_exactly(sock, ANSWER_BYTES, deadline))
        message = receive_exactly(sock, length, deadline)
    except TimeoutError as error:
        raise TransferTimeout(f"the source did not answer within {timeout:g} s; is its process stopped?") from error
    except OSError as error:
        raise PeerLost(f"the source closed the connection before it had answered: {error}") from error
    if verdict is not Verdict.GRANTED:
        raise error_of(verdict, message)


def receive_exactly(sock: socket.socket, nbytes: int, deadline: float) -> bytes:
    """Return the next `nbytes` of a stream.

    Raises:
        OSError: The connection broke, or ended early; TimeoutError when the deadline passed.
    """
    received = bytearray(nbytes)
    view = memoryview(received)
    while view:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        sock.settimeout(left)
        count = sock.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the connection ended early")
        view = view[count:]
    return bytes(received)
