"""Errors of a worker server as gRPC status codes, and back: the one table for both sides."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc

from modelexpress.errors import (
    LeaseExpired,
    ModelExpressError,
    PeerError,
    PeerUnreachable,
    SourceBusy,
    SourceGone,
)

_CODES: dict[type[ModelExpressError], grpc.StatusCode] = {
    SourceGone: grpc.StatusCode.FAILED_PRECONDITION,
    SourceBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LeaseExpired: grpc.StatusCode.NOT_FOUND,
}

_ERRORS: dict[grpc.StatusCode, type[PeerError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: SourceGone,
    grpc.StatusCode.RESOURCE_EXHAUSTED: SourceBusy,
    grpc.StatusCode.NOT_FOUND: LeaseExpired,
    grpc.StatusCode.UNAVAILABLE: PeerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: PeerUnreachable,
}


@contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn our errors into the status of the call being answered."""
    try:
        yield
    except ModelExpressError as error:
        code = next((c for kind, c in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
        context.abort(code, str(error))


@contextmanager
def calling(address: str) -> Iterator[None]:
    """Turn the status of a failed call to `address` into our errors.

    Raises:
        PeerError: Or the subclass that the status stands for.
    """
    try:
        yield
    except grpc.RpcError as error:
        _raise(address, error)


def _raise(address: str, error: grpc.RpcError) -> NoReturn:
    code, details = error.code(), error.details() or "no details"
    kind = _ERRORS.get(code, PeerError)
    if kind is PeerUnreachable:
        details += "; the worker is gone or a firewall is between: see `mx sources` and MX_WORKER_HOST"
    raise kind(f"worker {address}: {details} ({code.name})") from error
