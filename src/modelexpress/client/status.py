"""What a gRPC status means: the one place where it becomes an error of ours."""

from enum import Enum

import grpc

from modelexpress.errors import RegistryError, RegistryProtocolError, RegistryRefused, RegistryUnreachable


class Failure(Enum):
    """Why a call to a server failed."""

    UNREACHABLE = "no server answered"
    OTHER_PROTOCOL = "something answered that is no such server"
    REFUSED = "the server understood and refused"


_OF_CODE = {
    grpc.StatusCode.UNAVAILABLE: Failure.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Failure.UNREACHABLE,
    grpc.StatusCode.CANCELLED: Failure.UNREACHABLE,
    grpc.StatusCode.UNIMPLEMENTED: Failure.OTHER_PROTOCOL,
    grpc.StatusCode.INTERNAL: Failure.OTHER_PROTOCOL,
    grpc.StatusCode.UNKNOWN: Failure.OTHER_PROTOCOL,
    grpc.StatusCode.DATA_LOSS: Failure.OTHER_PROTOCOL,
}

# gRPC has no status for "it answered, but not in HTTP/2" and reports it as UNAVAILABLE with these words.
_NOT_GRPC = ("Failed parsing HTTP/2", "http1.x server", "handshake failed")


def failure_of(code: grpc.StatusCode, details: str) -> Failure:
    """Return why a call failed, from its gRPC status.

    Args:
        code: The status code; one that is in no other class is a refusal.
        details: The text beside it.
    """
    if code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in _NOT_GRPC):
        return Failure.OTHER_PROTOCOL
    return _OF_CODE.get(code, Failure.REFUSED)


def registry_error(code: grpc.StatusCode, details: str, address: str, timeout: float) -> RegistryError:
    """Return the error to raise for a failed call to the registry at `address`, given `timeout` seconds."""
    match failure_of(code, details):
        case Failure.UNREACHABLE if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return RegistryUnreachable(
                f"the registry at {address} did not answer within {timeout:g} s: start one with `mx serve` if "
                "none runs there, or allow more time if it is busy"
            )
        case Failure.UNREACHABLE:
            return RegistryUnreachable(
                f"no registry is available at {address} ({details}): start one with `mx serve`, or name another "
                "in MODEL_EXPRESS_URL"
            )
        case Failure.OTHER_PROTOCOL:
            return RegistryProtocolError(
                f"what answers at {address} is no registry, or one side speaks TLS and the other does not "
                f"({code.name}: {details}): check host, port and TLS"
            )
        case Failure.REFUSED:
            return RegistryRefused(f"the registry at {address} refused the call ({code.name}): {details}")
