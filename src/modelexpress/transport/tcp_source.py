"""The source's side of `tcp`: requests are answered in order, from the page cache where the kernel can."""

import os
import socket
import time
from collections.abc import Sequence

from modelexpress.errors import TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.greeting import receive_exactly
from modelexpress.transport.passing import read_only
from modelexpress.transport.reception import Reception, ServedExport
from modelexpress.transport.server import GOODBYE_SECONDS, GREETING_SECONDS, Connection
from modelexpress.transport.stream import send_all, set_stall_deadline
from modelexpress.transport.tcp_descriptor import TcpDescriptor
from modelexpress.transport.tcp_protocol import RequestStream
from modelexpress.transport.verdict import Verdict, encode_answer

_SENDFILE_BYTES = int(os.environ.get("SF", 64 << 10))
"""From here on handing pages to the socket is cheaper than copying them."""
_RECEIVE_BYTES = 64 << 10
_GRANTED = encode_answer(Verdict.GRANTED)

_Row = tuple[int, int, int]


class TcpExport(ServedExport):
    """Regions that readers get the bytes of.

    Args:
        reception: Serves the export.
        regions: What is offered.
        stall_timeout: Seconds after which a reader that takes nothing is dropped.
        tls: Whether connections are encrypted; the kernel cannot send pages directly then.
    """

    def __init__(self, reception: Reception, regions: Sequence[Region], stall_timeout: float, tls: bool) -> None:
        super().__init__(reception)
        self._stall_timeout = stall_timeout
        self._tls = tls
        self._views = [region.view() for region in regions]
        self._descriptors: list[int | None] = []
        self._descriptor = b""
        try:
            for region in regions:
                sendable = region.descriptor is not None and not tls
                self._descriptors.append(read_only(region.descriptor) if sendable else None)
        except OSError as error:
            self.release()
            raise TransportUnavailable(f"the memory cannot be opened for readers: {error}") from error

    @property
    def descriptor(self) -> bytes:
        return self._descriptor

    def place(self, host: str, port: int) -> None:
        """Say where the export is served."""
        description = TcpDescriptor(host=host, port=port, export=self.export_id.hex(), tls=self._tls)
        self._descriptor = description.model_dump_json().encode()

    def serve(self, connection: Connection) -> None:
        sock = connection.sock
        set_stall_deadline(sock, self._stall_timeout, self._tls)
        sock.sendall(_GRANTED)
        requests = RequestStream()
        while self._wait(connection) and (data := sock.recv(_RECEIVE_BYTES)):
            try:
                for rows in requests.feed(data):
                    self._answer(sock, rows)
                    if connection.verdict is not None:
                        break
            except TransportUnavailable as error:
                sock.sendall(encode_answer(Verdict.MALFORMED, str(error)))
                return
        if connection.verdict is not None:
            self._say_goodbye(connection)

    def release(self) -> None:
        while self._descriptors:
            if (descriptor := self._descriptors.pop()) is not None:
                os.close(descriptor)
        self._views.clear()

    def _wait(self, connection: Connection) -> bool:
        """Return whether a request is coming; False when the connection is to end."""
        decrypted = connection.sock.pending() if self._tls else 0  # type: ignore[attr-defined]
        return connection.verdict is None if decrypted else connection.wait_readable()

    def _answer(self, sock: socket.socket, rows: Sequence[_Row]) -> None:
        if (problem := self._out_of_range(rows)) is not None:
            sock.sendall(encode_answer(Verdict.OUT_OF_RANGE, problem))
            return
        gathered = [memoryview(_GRANTED)]
        for region, offset, nbytes in rows:
            descriptor = self._descriptors[region]
            if descriptor is None or nbytes < _SENDFILE_BYTES:
                gathered.append(self._views[region][offset : offset + nbytes])
                continue
            send_all(sock, gathered, self._tls, more=True)
            gathered = []
            _send_pages(sock, descriptor, offset, nbytes)
        send_all(sock, gathered, self._tls, more=False)

    def _out_of_range(self, rows: Sequence[_Row]) -> str | None:
        for region, offset, nbytes in rows:
            if region >= len(self._views):
                return f"region {region} was asked for; the source offers {len(self._views)}"
            if offset + nbytes > len(self._views[region]):
                size = len(self._views[region])
                return f"region {region} ends at {size}; {nbytes} bytes at {offset} were asked for"
        return None

    def _say_goodbye(self, connection: Connection) -> None:
        """Tell the reader why, and wait until it has taken everything.

        Pages that were sent are still those of the source while they are on their way: only when the reader has
        closed its end may the memory be used for something else.
        """
        sock = connection.sock
        sock.sendall(encode_answer(connection.verdict or Verdict.WITHDRAWN))
        sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + GOODBYE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(4096):
                return


def _send_pages(sock: socket.socket, descriptor: int, offset: int, nbytes: int) -> None:
    end = offset + nbytes
    while offset < end:
        sent = os.sendfile(sock.fileno(), descriptor, offset, end - offset)
        if sent == 0:
            raise ConnectionResetError("the memory ended before the region did")
        offset += sent
