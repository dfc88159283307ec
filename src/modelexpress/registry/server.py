"""Assembles a registry: service, health, reflection, reaper, metrics; starts it, and stops it in order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from modelexpress.errors import ConfigurationError
from modelexpress.registry.auth import TokenInterceptor, read_tokens, require_protection
from modelexpress.registry.metrics import Metrics
from modelexpress.registry.presence import MOST_PRESENT, Presence
from modelexpress.registry.quota import Capacity, Quota
from modelexpress.registry.reaper import Reaper
from modelexpress.registry.service import P2pService
from modelexpress.registry.store import Store, open_store
from modelexpress.wire.limits import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES
from modelexpress.wire.p2p_service import SERVICE_NAME
from modelexpress.wire.tls import ServerTls

logger = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    # Without this, a second registry would share the port in silence and hold half of the records.
    ("grpc.so_reuseport", 0),
    # Connections that never speak HTTP/2, or never speak at all, do not keep their descriptors.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_concurrent_streams", 256),
    # A client may ping on a quiet connection, to find out early that the registry is gone.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_MAX_CALLS = 1024 + MOST_PRESENT


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """How a registry runs; times in seconds.

    Args:
        listen: HOST:PORT; port 0 takes any free one.
        store: See `open_store`.
        redis_url: What the store `redis` means.
        heartbeat_timeout: A worker unheard for so long is told as STALE.
        reaper_interval: How often dead workers are looked for.
        gc_timeout: A dead record unheard for so long is deleted.
        token_file: Tokens that callers must send one of, one a line; None asks for none.
        tls: Files for TLS; None speaks plain text.
        insecure: Allows an address that other hosts reach with neither token nor TLS.
        metrics: HOST:PORT of Prometheus metrics; None serves none.
        capacity: What the store may hold.
        grace: How long calls in flight may take when the registry stops.
    """

    listen: str = "127.0.0.1:8001"
    store: str = "memory"
    redis_url: str = "redis://localhost:6379"
    heartbeat_timeout: float = 90.0
    reaper_interval: float = 30.0
    gc_timeout: float = 3600.0
    token_file: Path | None = None
    tls: ServerTls | None = None
    insecure: bool = False
    metrics: str | None = None
    capacity: Capacity = field(default_factory=Capacity)
    grace: float = 10.0


class Registry:
    """A running registry, from entering the block to leaving it, when calls in flight are finished first.

    Example:
        async with Registry(RegistryOptions(listen="127.0.0.1:0")) as registry:
            print(registry.address)

    Attributes:
        address: HOST:PORT it is bound to, once entered.
        metrics_address: HOST:PORT of its metrics, or None.
    """

    def __init__(self, options: RegistryOptions) -> None:
        self._options = options
        self._stack = AsyncExitStack()
        self.address = options.listen
        self.metrics_address: str | None = None

    async def __aenter__(self) -> Self:
        """Start.

        Raises:
            ConfigurationError: An option cannot be used, or the address cannot be bound.
            StoreError: The store cannot be opened.
        """
        options = self._options
        if not options.listen.startswith("unix:"):
            split_address(options.listen)
        require_protection(
            options.listen,
            token=options.token_file is not None,
            tls=options.tls is not None,
            insecure=options.insecure,
        )
        async with AsyncExitStack() as stack:
            store = await open_store(options.store, redis_url=options.redis_url)
            stack.push_async_callback(store.close)
            metrics = Metrics()
            self._serve_metrics(metrics, stack)
            await self._serve_calls(store, metrics, stack)
            await self._reap(store, metrics, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _serve_metrics(self, metrics: Metrics, stack: AsyncExitStack) -> None:
        if self._options.metrics is None:
            return
        host, port = split_address(self._options.metrics)
        bound, stop = metrics.serve(port, host)
        stack.callback(stop)
        self.metrics_address = f"{host}:{bound}"

    async def _serve_calls(self, store: Store, metrics: Metrics, stack: AsyncExitStack) -> None:
        options = self._options
        interceptors = []
        if options.token_file is not None:
            interceptors.append(TokenInterceptor(read_tokens(options.token_file)))
        server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
        service = P2pService(store, options.heartbeat_timeout, Quota(store, options.capacity), metrics)
        presence = Presence(store)
        server.add_generic_rpc_handlers((service.handler(), presence.handler()))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.address = _bind(server, options.listen, options.tls)
        await server.start()
        stack.push_async_callback(server.stop, options.grace)
        stack.push_async_callback(presence.close)
        stack.push_async_callback(checks.enter_graceful_shutdown)
        for name in ("", SERVICE_NAME):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def _reap(self, store: Store, metrics: Metrics, stack: AsyncExitStack) -> None:
        options = self._options
        reaper = Reaper(
            store,
            metrics,
            interval=options.reaper_interval,
            heartbeat_timeout=options.heartbeat_timeout,
            gc_timeout=options.gc_timeout,
        )
        task = asyncio.create_task(reaper.run(), name="mx-registry-reaper")

        async def stop() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        stack.push_async_callback(stop)


async def serve(options: RegistryOptions, started: Callable[[Registry], None]) -> None:
    """Run a registry until SIGTERM or SIGINT; calls in flight are finished first.

    Args:
        options: How it runs.
        started: Called once it answers calls.

    Raises:
        ConfigurationError: An option cannot be used, or the address cannot be bound.
        StoreError: The store cannot be opened.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Registry(options) as registry:
        logger.info("registry on %s, store %s", registry.address, options.store)
        started(registry)
        await stop.wait()
        logger.info("registry on %s stops when its calls are finished", registry.address)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        ConfigurationError: It has another form.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} is no address: use HOST:PORT, as in 127.0.0.1:8001")
    return host, int(port)


def _bind(server: grpc.aio.Server, listen: str, tls: ServerTls | None) -> str:
    unix = listen.startswith("unix:")
    host = "" if unix else split_address(listen)[0]
    try:
        port = server.add_insecure_port(listen) if tls is None else server.add_secure_port(listen, tls.credentials())
    except RuntimeError as error:
        raise ConfigurationError(f"{listen} cannot be bound: is another server running there? ({error})") from error
    return listen if unix else f"{host}:{port}"
