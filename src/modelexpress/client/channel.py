"""How a client connects to a registry: address, retries, reconnecting, token, TLS."""

import json
from dataclasses import dataclass
from pathlib import Path

from modelexpress.errors import ConfigurationError
from modelexpress.settings import Settings
from modelexpress.wire.limits import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES
from modelexpress.wire.p2p_service import SERVICE_NAME
from modelexpress.wire.tls import ClientTls

# The retries are gRPC's own: they respect the call's deadline, add jitter, and are the only ones that know
# whether the server has seen the call. Every call of the registry may be repeated: a publication replaces
# itself, and a status that arrives twice changes nothing more.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE_NAME}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1.5s",
                "backoffMultiplier": 2.5,
                # CANCELLED is what a stopping server answers to calls that it has not begun.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    # A registry that restarts is back in a second; gRPC would wait up to two minutes before it looks again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Despite its name also the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A registry whose host is gone closes no connection: without pings, calls would run into their deadline.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Several clients of one process are several connections, so that closing one leaves the others alone.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What one client connects with.

    Args:
        address: HOST:PORT of the registry.
        timeout: Deadline of each call in seconds, retries included.
        token: Sent with each call.
        token_file: Where the token is read before each call when `token` is None: such files are rotated.
        tls: Files for TLS; plain text when None.
    """

    address: str
    timeout: float
    token: str | None
    token_file: Path | None
    tls: ClientTls | None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what a call carries beside its request.

        Raises:
            ConfigurationError: The token file cannot be read.
        """
        token = self.token
        if token is None and self.token_file is not None:
            token = _read_token(self.token_file)
        return () if token is None else (("authorization", f"Bearer {token}"),)


def connection(address: str | None, timeout: float, token: str | None, tls: ClientTls | None) -> Connection:
    """Return the connection of a client, with what the environment says where an argument is None."""
    settings = Settings.read()
    if address is not None:
        address = Settings.model_validate({"registry": address}).registry
    token_file = Path(settings.auth_token_path) if settings.auth_token_path else None
    return Connection(
        address=address or settings.registry,
        timeout=timeout,
        token=token,
        token_file=token_file,
        tls=tls or _tls_of(settings),
    )


def _tls_of(settings: Settings) -> ClientTls | None:
    ca, certificate, key = (
        Path(path) if path else None for path in (settings.tls_ca, settings.tls_cert, settings.tls_key)
    )
    return ClientTls(ca=ca, certificate=certificate, key=key) if ca or certificate else None


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error}; check MX_AUTH_TOKEN_PATH") from error
