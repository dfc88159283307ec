"""Who may call a worker server: whoever sends the fleet's bearer token, where one is set."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import grpc

from modelexpress.registry.auth import Tokens

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenGate(grpc.ServerInterceptor):
    """Lets calls through that carry one of the tokens; others are answered UNAUTHENTICATED.

    Args:
        tokens: As `modelexpress.registry.auth.read_tokens` gives them.
    """

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self._tokens = Tokens(tokens)

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the call's own handler, or one that refuses."""
        if self._tokens.allow(handler_call_details):
            return continuation(handler_call_details)
        return _REFUSAL


def _refuse(_request: bytes, context: grpc.ServicerContext) -> NoReturn:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "this worker asks for a bearer token: set MX_AUTH_TOKEN_PATH to its file"
    )


_REFUSAL: "Handler" = grpc.unary_unary_rpc_method_handler(_refuse)
