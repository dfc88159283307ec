"""The source's side of `tcp`: requests are answered in order, straight from the regions."""

import logging
import socket
from collections.abc import Sequence
from contextlib import closing

from modelexpress.errors import DeviceError, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Run
from modelexpress.transport.crew import out_of_range
from modelexpress.transport.reception import Reception, ServedExport
from modelexpress.transport.server import Connection
from modelexpress.transport.stream import set_stall_deadline
from modelexpress.transport.tcp_descriptor import TcpDescriptor
from modelexpress.transport.tcp_memory import Cuda, HostOutlet, Outlet, StagedOutlet
from modelexpress.transport.tcp_protocol import RequestStream
from modelexpress.transport.verdict import Verdict, encode_answer

logger = logging.getLogger(__name__)

_RECEIVE_BYTES = 64 << 10
_GRANTED = memoryview(encode_answer(Verdict.GRANTED))


class TcpExport(ServedExport):
    """Regions that readers get the bytes of.

    The kernel copies what is sent. Handing it the pages (sendfile) took 1.4 times the processor time on loopback,
    and would let a reader see what the source writes there after it has withdrawn them.

    Args:
        reception: Serves the export.
        regions: What is offered.
        stall_timeout: Seconds after which a reader that takes nothing is dropped.
        tls: Whether connections are encrypted.
        cuda: Returns the CUDA driver.
    """

    def __init__(
        self, reception: Reception, regions: Sequence[Region], stall_timeout: float, tls: bool, cuda: Cuda
    ) -> None:
        super().__init__(reception)
        self._stall_timeout = stall_timeout
        self._tls = tls
        self._cuda = cuda
        self._regions = tuple(regions)
        self._on_host = all(region.device is None for region in regions)
        self._views = [region.view() for region in regions if self._on_host]
        self._region_bytes = tuple(region.nbytes for region in regions)
        self._descriptor = b""

    @property
    def descriptor(self) -> bytes:
        return self._descriptor

    def place(self, host: str, port: int) -> None:
        """Say where the export is served."""
        description = TcpDescriptor(
            host=host, port=port, export=self.export_id.hex(), tls=self._tls, region_bytes=self._region_bytes
        )
        self._descriptor = description.model_dump_json().encode()

    def serve(self, connection: Connection) -> None:
        set_stall_deadline(connection.sock, self._stall_timeout, self._tls)
        connection.sock.sendall(_GRANTED)
        try:
            with closing(self._outlet()) as outlet:
                self._serve(connection, outlet)
        except DeviceError as error:
            # What the reader was promised cannot be sent any more: it sees the connection end.
            logger.error("a reader is cut off, for device memory cannot be read: %s", error)

    def release(self) -> None:
        self._views.clear()

    def _outlet(self) -> Outlet:
        if self._on_host:
            return HostOutlet(self._views, self._tls)
        return StagedOutlet(self._regions, self._tls, self._cuda)

    def _serve(self, connection: Connection, outlet: Outlet) -> None:
        sock = connection.sock
        requests = RequestStream()
        while self._wait(connection) and (data := sock.recv(_RECEIVE_BYTES)):
            try:
                for runs in requests.feed(data):
                    self._answer(sock, runs, outlet)
                    if connection.verdict is not None:
                        break
            except TransportUnavailable as error:
                sock.sendall(encode_answer(Verdict.MALFORMED, str(error)))
                return

    def _wait(self, connection: Connection) -> bool:
        """Return whether something has come; False when the connection is to end."""
        decrypted = connection.sock.pending() if self._tls else 0  # type: ignore[attr-defined]
        return connection.verdict is None if decrypted else connection.wait_readable()

    def _answer(self, sock: socket.socket, runs: Sequence[Run], outlet: Outlet) -> None:
        # Readers check this too, but what they believe of the regions came over the wire.
        if (problem := out_of_range(runs, self._region_bytes)) is not None:
            sock.sendall(encode_answer(Verdict.OUT_OF_RANGE, problem))
            return
        outlet.send(sock, _GRANTED, runs)
