"""Who may call a server: bearer tokens, and the rule that an open server stays on its own host."""

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from modelexpress.errors import ConfigurationError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Handler: TypeAlias = "grpc.RpcMethodHandler[_Request, _Response] | None"

_FOR_PROBES = "/grpc.health.v1.Health/"


def is_loopback(listen: str) -> bool:
    """Return whether only processes of this host reach an address (HOST:PORT or unix:PATH)."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_protection(listen: str, *, token: bool, tls: bool, insecure: bool) -> None:
    """Refuse an address that other hosts reach when nothing protects it.

    Raises:
        ConfigurationError: Names what to do.
    """
    if not (token or tls or insecure or is_loopback(listen)):
        raise ConfigurationError(
            f"{listen} is reachable from other hosts and nothing protects it: give --token-file, or "
            "--tls-cert and --tls-key, listen on 127.0.0.1, or pass --insecure if the network keeps "
            "strangers out"
        )


def read_tokens(path: Path) -> tuple[str, ...]:
    """Return the tokens in a file, one a line; several are accepted so that they can be rotated.

    Raises:
        ConfigurationError: The file cannot be read, or holds none.
    """
    try:
        tokens = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error}") from error
    if not tokens:
        raise ConfigurationError(f"the token file {path} is empty: write one token a line")
    return tokens


class Tokens:
    """The bearer tokens that a server accepts."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(f"Bearer {token}") for token in tokens]

    def allow(self, details: grpc.HandlerCallDetails) -> bool:
        """Return whether a call carries one of them."""
        given = dict(details.invocation_metadata).get("authorization", "")
        digest = _digest(given if isinstance(given, str) else given.decode("latin-1"))
        # Digests have one length, so the time taken tells nothing about how long a token is.
        return any(hmac.compare_digest(digest, known) for known in self._digests)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through that carry one of the tokens; health checks need none, probes cannot send one."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self._tokens = Tokens(tokens)

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler[_Request, _Response]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler[_Request, _Response]":
        """Return the call's own handler, or one that answers UNAUTHENTICATED."""
        if handler_call_details.method.startswith(_FOR_PROBES) or self._tokens.allow(handler_call_details):
            return await continuation(handler_call_details)
        return _REFUSAL


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def _refuse(_data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed, and none of the accepted ones was sent"
    )


_REFUSAL: "grpc.RpcMethodHandler[Any, Any]" = grpc.unary_unary_rpc_method_handler(_refuse)
