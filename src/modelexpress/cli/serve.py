"""`mx serve`: run a registry until it is told to stop."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelexpress.errors import ConfigurationError
from modelexpress.settings import Settings

if TYPE_CHECKING:
    from modelexpress.registry.server import Registry
    from modelexpress.wire.tls import ServerTls


def serve(
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes any free one.")] = "127.0.0.1:8001",
    store: Annotated[
        str | None,
        typer.Option(
            help="memory, sqlite:PATH (sqlite: a file in your state folder) or redis://HOST:PORT/DB.",
            show_default="MX_METADATA_BACKEND, or sqlite",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Callers must send one of the tokens in this file, one a line.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain of this server, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-cert, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Authorities of client certificates; set: clients must show one.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this host with neither token nor TLS.")
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus metrics.", show_default="none")] = None,
    heartbeat_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds; a worker unheard for so long is stale.",
            show_default="MX_HEARTBEAT_TIMEOUT_SECS, or 90",
        ),
    ] = None,
    reaper_interval: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds between looks for dead workers.",
            show_default="MX_REAPER_SCAN_INTERVAL_SECS, or 30",
        ),
    ] = None,
    gc_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds; a stale record this old is deleted.",
            show_default="MX_GC_TIMEOUT_SECS, or 3600",
        ),
    ] = None,
) -> None:
    """Run a registry: who holds which weights and caches, and is alive. Stop it with Ctrl-C or SIGTERM."""
    try:
        from modelexpress.registry import server
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`mx serve` needs the package {error.name}: pip install 'modelexpress[server]'"
        ) from error
    settings = Settings.read()
    options = server.RegistryOptions(
        listen=listen,
        store=store or settings.metadata_backend,
        redis_url=settings.redis_url,
        heartbeat_timeout=heartbeat_timeout or settings.heartbeat_timeout,
        reaper_interval=reaper_interval or settings.reaper_interval,
        gc_timeout=gc_timeout or settings.gc_timeout,
        token_file=token_file,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        insecure=insecure,
        metrics=metrics,
    )
    asyncio.run(server.serve(options, _announce))


def _announce(registry: "Registry") -> None:
    # Scripts read the bound port from this line, so it must not wait in a buffer.
    print(f"registry listening on {registry.address}", flush=True)  # noqa: T201
    if registry.metrics_address is not None:
        print(f"metrics on http://{registry.metrics_address}/metrics", flush=True)  # noqa: T201


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> "ServerTls | None":
    from modelexpress.wire.tls import ServerTls

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError("TLS needs both --tls-cert and --tls-key")
    return ServerTls(certificate=certificate, key=key, client_ca=client_ca)
