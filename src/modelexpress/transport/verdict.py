"""What a source answers a reader, as a number on the wire and as an error."""

import struct
from enum import IntEnum

from modelexpress.errors import AccessDenied, RegionWithdrawn, TransportError, TransportUnavailable

_ANSWER = struct.Struct("<BH61x")
ANSWER_BYTES = _ANSWER.size
MAX_MESSAGE_BYTES = 1024


class Verdict(IntEnum):
    """The answers of a source. All but GRANTED and OUT_OF_RANGE end the connection."""

    GRANTED = 0
    DENIED = 1
    WITHDRAWN = 2
    OUT_OF_RANGE = 3
    MALFORMED = 4
    BUSY = 5


_ERRORS: dict[Verdict, type[TransportError]] = {
    Verdict.DENIED: AccessDenied,
    Verdict.WITHDRAWN: RegionWithdrawn,
    Verdict.OUT_OF_RANGE: RegionWithdrawn,
    Verdict.MALFORMED: TransportUnavailable,
    Verdict.BUSY: TransportUnavailable,
}

REASONS = {
    Verdict.DENIED: "the source refused the lease's token: it was never granted, or it was revoked",
    Verdict.WITHDRAWN: "the source does not offer this memory any more; look for another source",
    Verdict.MALFORMED: "the source did not understand the request; do both sides run the same version?",
    Verdict.BUSY: "the source has as many readers as it accepts",
}


def encode_answer(verdict: Verdict, message: str = "") -> bytes:
    """Return a verdict as it travels; an empty message stands for the usual reason."""
    text = message.encode()[:MAX_MESSAGE_BYTES]
    return _ANSWER.pack(verdict, len(text)) + text


def decode_answer(head: bytes | bytearray | memoryview) -> tuple[Verdict, int]:
    """Return the verdict and how many bytes of message follow.

    Raises:
        TransportUnavailable: The peer speaks another protocol.
    """
    number, length = _ANSWER.unpack(head)
    if number not in Verdict._value2member_map_ or length > MAX_MESSAGE_BYTES:
        raise TransportUnavailable("the peer's answer is not one of this protocol; is it another service?")
    return Verdict(number), length


def error_of(verdict: Verdict, message: bytes = b"") -> TransportError:
    """Return the error that a verdict means to a reader."""
    return _ERRORS[verdict](message.decode(errors="replace") or REASONS[verdict])
