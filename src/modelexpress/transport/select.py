"""Which transports a process has, and which of them a target uses with a source: the fastest that works."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexpress.errors import AccessDenied, ConfigurationError, TransportError, TransportUnavailable
from modelexpress.settings import Settings
from modelexpress.transport.base import Reader, Transport
from modelexpress.transport.local import LocalTransport
from modelexpress.transport.nixl import NixlTransport
from modelexpress.transport.tcp import TcpTransport
from modelexpress.wire.records import TransportOffer

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Selection:
    """The transports that a process can use, best first, and why it cannot use the others, by name."""

    transports: tuple[Transport, ...]
    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Opened:
    """A reader, the transport that it belongs to, and why faster ones were skipped, by name."""

    transport: Transport
    reader: Reader
    skipped: tuple[tuple[str, str], ...]


def available(
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    advertised_host: str = "",
    server_tls: "ssl.SSLContext | None" = None,
    client_tls: "ssl.SSLContext | None" = None,
) -> Selection:
    """Return every transport that can work in this process; nothing is listened on yet.

    Where TLS files are set that cannot be used, what they were to protect is left out: nothing falls back to plain.

    Args:
        settings: Names the one transport to use, or `auto`, the one to try first, and the TLS files; read from the
            environment when None.
        host: Address on which a source listens for `nixl` and `tcp`.
        advertised_host: Name under which targets reach this process; empty: `host`.
        server_tls: Makes a source encrypt `tcp`, and what `nixl` says before bytes travel; None: as the settings say.
        client_tls: How a target checks a source that encrypts; None: as the settings say.
    """
    settings = settings or Settings.read()
    unprotected = ""
    try:
        server_tls, client_tls = _contexts(settings, server_tls, client_tls)
    except ConfigurationError as error:
        unprotected = str(error)
    usable: list[Transport] = []
    reasons: list[tuple[str, str]] = []
    for transport in _every(settings, host, advertised_host, server_tls, client_tls):
        if settings.transport not in ("auto", transport.name):
            reasons.append((transport.name, f"MX_TRANSPORT asks for {settings.transport}"))
        elif unprotected and not isinstance(transport, LocalTransport):
            reasons.append((transport.name, unprotected))
        elif (reason := transport.unavailable()) is not None:
            reasons.append((transport.name, reason))
        else:
            usable.append(transport)
    usable.sort(key=lambda transport: transport.name != settings.transport_first)
    return Selection(tuple(usable), tuple(reasons))


def _contexts(
    settings: Settings, server: "ssl.SSLContext | None", client: "ssl.SSLContext | None"
) -> "tuple[ssl.SSLContext | None, ssl.SSLContext | None]":
    """Return the TLS contexts, those that were not given from the files that the settings name."""
    if settings.tls_cert or settings.tls_key or settings.tls_ca:
        # Only then: importing what encrypts takes longer than everything else here.
        from modelexpress.transport.tcp_tls import client_context, server_context

        return server or server_context(settings), client or client_context(settings)
    return server, client


def _every(
    settings: Settings,
    host: str,
    advertised_host: str,
    server_tls: "ssl.SSLContext | None",
    client_tls: "ssl.SSLContext | None",
) -> tuple[Transport, ...]:
    """Return every transport there is, fastest first."""
    local = LocalTransport(stall_timeout=settings.stall_timeout)
    nixl = NixlTransport(
        host,
        advertised_host=advertised_host,
        stall_timeout=settings.stall_timeout,
        server_tls=server_tls,
        client_tls=client_tls,
        without_cards=settings.transport == "nixl",
    )
    tcp = TcpTransport(
        host,
        advertised_host=advertised_host,
        streams=settings.tcp_streams,
        stall_timeout=settings.stall_timeout,
        server_tls=server_tls,
        client_tls=client_tls,
    )
    return local, nixl, tcp


def open_first(
    transports: Sequence[Transport], offers: Sequence[TransportOffer], token: str, device: int | None = None
) -> Opened:
    """Open a source over the first of `transports` that it offers and that works.

    Args:
        transports: This process's own, best first.
        offers: The source's, as they came over the wire.
        token: The lease's token.
        device: The CUDA device that destinations are on; None: they are host memory.

    Raises:
        AccessDenied: No transport works, and one was refused.
        TransportUnavailable: No transport works; the message has the reason of each.
        RegionWithdrawn: The source does not offer the memory any more.
        PeerLost: The source is gone.
        TransferTimeout: The source does not answer.
    """
    offered = {offer.name: offer.descriptor for offer in offers if not offer.refused}
    refused = {offer.name: f"the source cannot offer it: {offer.refused}" for offer in offers if offer.refused}
    skipped: list[tuple[str, str]] = []
    kind: type[TransportError] = TransportUnavailable
    for transport in transports:
        if transport.name not in offered:
            skipped.append((transport.name, refused.get(transport.name, "the source does not offer it")))
            continue
        try:
            reader = transport.open(offered[transport.name], token, device)
        except (TransportUnavailable, AccessDenied) as error:
            # Another user's process is refused by `local`, and may still be let in by `tcp`.
            kind = AccessDenied if isinstance(error, AccessDenied) else kind
            skipped.append((transport.name, str(error)))
        else:
            return Opened(transport, reader, tuple(skipped))
    theirs = ", ".join(sorted(offered)) or "nothing"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "this process has no transport"
    raise kind(f"no transport works with this source, which offers {theirs}: {reasons}")
