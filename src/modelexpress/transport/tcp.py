"""The transport `tcp`: several connections, each straight from the source's regions into the destinations.

Device memory at either end goes by way of pinned buffers (`staging`); what travels is the same.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from modelexpress.errors import DeviceError, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Export, LinkLimit, Reader, Transport
from modelexpress.transport.door import Door
from modelexpress.transport.greeting import Greeting
from modelexpress.transport.limits import link_limit
from modelexpress.transport.reception import Reception
from modelexpress.transport.staging_driver import CudaStaging
from modelexpress.transport.tcp_descriptor import MAX_REGIONS, TcpDescriptor
from modelexpress.transport.tcp_memory import Cuda, HostInlet, StagedInlet
from modelexpress.transport.tcp_reader import TcpReader
from modelexpress.transport.tcp_source import TcpExport

if TYPE_CHECKING:
    import ssl


class TcpTransport(Transport):
    """Moves bytes between any two processes that can open a connection.

    Args:
        host: Address on which a source listens.
        port: Port on which a source listens; 0: any free one.
        advertised_host: Name under which targets reach the source; empty: `host`.
        streams: Connections of one reader.
        stall_timeout: Seconds without a byte after which the other side counts as lost.
        server_tls: Makes a source encrypt, with this certificate.
        client_tls: How a target checks the certificate of a source that encrypts.
        cuda: Returns the CUDA driver; called where device memory is involved.
    """

    name = "tcp"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertised_host: str = "",
        streams: int = 4,
        stall_timeout: float = 10.0,
        server_tls: "ssl.SSLContext | None" = None,
        client_tls: "ssl.SSLContext | None" = None,
        cuda: Cuda = CudaStaging,
    ) -> None:
        self._door = Door(host, port, stall_timeout, server_tls, client_tls)
        self._advertised_host = advertised_host or host
        self._streams = streams
        self._stall_timeout = stall_timeout
        self._cuda = cuda
        self._reception = Reception(self._door.listen, self._door.prepare, self.name)

    def unavailable(self) -> str | None:
        return self._door.unavailable()

    def export(self, regions: Sequence[Region]) -> Export:
        if len(regions) > MAX_REGIONS:
            raise TransportUnavailable(f"{len(regions)} regions are too many; put them into an arena")
        for device in {region.device for region in regions}:
            self._require(device)
        export = TcpExport(self._reception, regions, self._stall_timeout, self._door.encrypts, self._cuda)
        self._reception.add(export)
        export.place(self._advertised_host, self._door.port)
        return export

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        self._require(device)
        source = TcpDescriptor.parse(descriptor)
        greeting = Greeting(bytes.fromhex(source.export), token.encode())
        with ExitStack() as undo:
            sockets = [self._door.call(source.host, source.port, source.tls, greeting, undo)]
            while len(sockets) < self._streams:
                try:
                    sockets.append(self._door.call(source.host, source.port, source.tls, greeting, undo))
                except TransportUnavailable:
                    break  # the source has no room for more: fewer will do
            undo.pop_all()
        inlet = (
            partial(HostInlet, source.tls) if device is None else partial(StagedInlet, source.tls, self._cuda(), device)
        )
        return TcpReader(sockets, source.region_bytes, self._stall_timeout, source.tls, inlet)

    def limit(self, descriptor: bytes) -> LinkLimit | None:
        source = TcpDescriptor.parse(descriptor)
        return link_limit(source.host, source.port)

    def close(self) -> None:
        self._reception.close()

    def _require(self, device: int | None) -> None:
        """Raise TransportUnavailable where a device cannot be used."""
        if device is None:
            return
        try:
            with self._cuda().on(device):
                pass
        except DeviceError as error:
            raise TransportUnavailable(f"device {device} cannot be used: {error}") from error
