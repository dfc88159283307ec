"""The source's side of `tcp`: requests are answered in order, straight from the regions."""

import socket
from collections.abc import Sequence

from modelexpress.errors import TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Run
from modelexpress.transport.crew import out_of_range
from modelexpress.transport.reception import Reception, ServedExport
from modelexpress.transport.server import Connection
from modelexpress.transport.stream import send_all, set_stall_deadline
from modelexpress.transport.tcp_descriptor import TcpDescriptor
from modelexpress.transport.tcp_protocol import RequestStream
from modelexpress.transport.verdict import Verdict, encode_answer

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
    """

    def __init__(self, reception: Reception, regions: Sequence[Region], stall_timeout: float, tls: bool) -> None:
        super().__init__(reception)
        self._stall_timeout = stall_timeout
        self._tls = tls
        self._views = [region.view() for region in regions]
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
        sock = connection.sock
        set_stall_deadline(sock, self._stall_timeout, self._tls)
        sock.sendall(_GRANTED)
        requests = RequestStream()
        while self._wait(connection) and (data := sock.recv(_RECEIVE_BYTES)):
            try:
                for runs in requests.feed(data):
                    self._answer(sock, runs)
                    if connection.verdict is not None:
                        break
            except TransportUnavailable as error:
                sock.sendall(encode_answer(Verdict.MALFORMED, str(error)))
                return

    def release(self) -> None:
        self._views.clear()

    def _wait(self, connection: Connection) -> bool:
        """Return whether something has come; False when the connection is to end."""
        decrypted = connection.sock.pending() if self._tls else 0  # type: ignore[attr-defined]
        return connection.verdict is None if decrypted else connection.wait_readable()

    def _answer(self, sock: socket.socket, runs: Sequence[Run]) -> None:
        # Readers check this too, but what they believe of the regions came over the wire.
        if (problem := out_of_range(runs, self._region_bytes)) is not None:
            sock.sendall(encode_answer(Verdict.OUT_OF_RANGE, problem))
            return
        views = (self._views[run.region][run.offset : run.offset + run.nbytes] for run in runs)
        send_all(sock, [_GRANTED, *views], self._tls)
