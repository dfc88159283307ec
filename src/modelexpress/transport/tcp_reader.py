"""The target's side of `tcp`: each stream asks for parts ahead of time and receives them where they belong."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from modelexpress.errors import PeerLost, TransferTimeout, TransportError
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import Crew, Part
from modelexpress.transport.stream import receive_all, set_stall_deadline, shut
from modelexpress.transport.tcp_memory import Inlet
from modelexpress.transport.tcp_protocol import encode_request
from modelexpress.transport.verdict import ANSWER_BYTES, Verdict, decode_answer, error_of

AHEAD = 3
"""Parts that one stream asks for before the first of them has arrived, so that the source never waits."""


class TcpReader(Reader):
    """Reads over several connections that share the work.

    Args:
        sockets: Connections on which the source let this reader in, owned by the reader from now on.
        region_bytes: Size of each region, as the source described them.
        stall_timeout: Seconds without a byte after which the source counts as lost.
        tls: Whether the connections are encrypted.
        inlet: Makes what each connection's thread receives into.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        region_bytes: Sequence[int],
        stall_timeout: float,
        tls: bool,
        inlet: Callable[[], Inlet],
    ) -> None:
        self._sockets = sockets
        self._inlet = inlet
        self._stall_timeout = stall_timeout
        self._tls = tls
        for sock in sockets:
            set_stall_deadline(sock, stall_timeout, tls)
        self._crew = Crew("mx-tcp-stream", region_bytes, [partial(self._work, sock) for sock in sockets])

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def close(self) -> None:
        self._crew.close()
        for sock in self._sockets:
            shut(sock)
        self._crew.join()
        for sock in self._sockets:
            sock.close()

    def _work(self, sock: socket.socket) -> None:
        try:
            with contextlib.closing(self._inlet()) as inlet:
                self._stream(sock, inlet)
        except (TimeoutError, BlockingIOError):
            self._crew.fail(
                TransferTimeout(
                    f"nothing arrived for {self._stall_timeout:g} s: the source is stopped or the network is; "
                    "MX_STALL_TIMEOUT sets how long to wait"
                )
            )
        except OSError as error:
            self._crew.fail(PeerLost(f"the connection to the source broke: {error}"))
        except TransportError as error:
            self._crew.fail(error)
        finally:
            shut(sock)

    def _stream(self, sock: socket.socket, inlet: Inlet) -> None:
        """Keep a few parts on their way until there are no more."""
        asked: deque[Part] = deque()
        while True:
            while len(asked) < AHEAD and (part := self._crew.take(block=not asked)) is not None:
                asked.append(part)
                # Why a source hung up is still to be read.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(encode_request(part.runs))
            if not asked:
                return
            self._receive(sock, asked.popleft(), inlet)

    def _receive(self, sock: socket.socket, part: Part, inlet: Inlet) -> None:
        head = memoryview(bytearray(ANSWER_BYTES))
        receive_all(sock, [head], self._tls)
        verdict, length = decode_answer(head)
        if verdict is Verdict.GRANTED:
            inlet.receive(sock, part.runs)
            self._crew.land(part)
            return
        message = memoryview(bytearray(length))
        receive_all(sock, [message], self._tls)
        error = error_of(verdict, bytes(message))
        if verdict is not Verdict.OUT_OF_RANGE:
            raise error
        self._crew.refuse(part, error)
