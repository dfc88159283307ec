"""The target's side of `nixl`: one thread posts batches of reads, another listens to what the source says."""

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from modelexpress.errors import PeerLost, TransferTimeout, TransportError
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import Crew, Part
from modelexpress.transport.nixl_agent import POLL_SECONDS, Agent
from modelexpress.transport.nixl_memory import Landing, Span
from modelexpress.transport.nixl_native import Block
from modelexpress.transport.stream import shut
from modelexpress.transport.verdict import ANSWER_BYTES, decode_answer, error_of

AHEAD = 3
"""Batches that are posted before the first of them has landed, so that the card never waits."""
BATCH_BYTES = 64 << 20
"""What one transfer of NIXL reads: a few milliseconds' worth, which is as long as `close` waits."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch of parts on its way."""

    handle: int
    parts: tuple[Part, ...]


class NixlReader(Reader):
    """Reads the regions of one export.

    A transfer that stalls cannot be cancelled. If it has not ended by itself after as long again, which RDMA
    hardware does, the agent is ended, so that nothing lands any more: the other readers of this process then get
    PeerLost, and may open their sources again. `close` takes no longer than these two deadlines.

    Args:
        sock: The connection on which the source let this reader in, owned by the reader from now on.
        agent: The process's agent.
        peer: Name of the source's agent; `agent` is connected to it, which the reader ends.
        regions: The source's regions.
        stall_timeout: Seconds without a byte after which the source counts as lost.
    """

    def __init__(
        self, sock: socket.socket, agent: Agent, peer: str, regions: Sequence[Block], stall_timeout: float
    ) -> None:
        self._sock = sock
        self._agent = agent
        self._peer = peer
        self._regions = regions
        self._stall_timeout = stall_timeout
        self._landing = Landing(agent.memory)
        self._closing = False
        self._lost = False
        self._crew = Crew("mx-nixl-read", [nbytes for _, nbytes, _ in regions], [self._work])
        self._listener = threading.Thread(target=self._listen, name="mx-nixl-listen", daemon=True)
        self._end = self._ending()
        sock.settimeout(None)
        self._listener.start()

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def close(self) -> None:
        self._end.close()

    def _ending(self) -> ExitStack:
        """Return what `close` does, each step once, the last one first."""
        end = ExitStack()
        end.callback(lambda: self._agent.peers.disconnect(self._peer, lost=self._lost))
        end.callback(self._landing.release)
        end.callback(self._sock.close)
        end.callback(self._listener.join)
        end.callback(shut, self._sock, socket.SHUT_RDWR)
        end.callback(self._crew.join)
        end.callback(self._stop)
        return end

    def _stop(self) -> None:
        self._closing = True
        self._crew.close()

    def _listen(self) -> None:
        """Wait for what ends the reader: the source's last word, or its death."""
        try:
            said = self._sock.recv(ANSWER_BYTES)
            error = error_of(decode_answer(said)[0]) if len(said) == ANSWER_BYTES else PeerLost("the source has ended")
        except (OSError, ValueError) as broken:
            error = PeerLost(f"the connection to the source broke: {broken}")
        except TransportError as strange:
            error = strange
        self._fail(error)
        # The source keeps its memory as it is until this reader hangs up.
        self._crew.join()
        shut(self._sock, socket.SHUT_RDWR)

    def _fail(self, error: TransportError) -> None:
        # A connection that ends because this side is closing says nothing of the peer, which then stays connected.
        self._lost |= isinstance(error, PeerLost | TransferTimeout) and not self._closing
        self._crew.fail(error)

    def _work(self) -> None:
        flights: deque[_Flight] = deque()
        try:
            while True:
                while len(flights) < AHEAD and (parts := tuple(self._take(block=not flights))):
                    flights.append(_Flight(self._post(parts), parts))
                if not flights:
                    return
                self._land(flights[0])
                flights.popleft()
        except TransportError as error:
            self._fail(error)
            self._drain(flights)

    def _take(self, block: bool) -> Iterator[Part]:
        """Yield the parts of the next batch; none when there is nothing to do."""
        nbytes = 0
        while nbytes < BATCH_BYTES and (part := self._crew.take(block=block)) is not None:
            yield part
            nbytes += part.nbytes
            block = False

    def _post(self, parts: Sequence[Part]) -> int:
        runs = tuple(_merged(run for part in parts for run in part.runs if run.nbytes))
        local = self._landing.blocks([Span(run.address, run.nbytes) for run in runs])
        return self._agent.native.post(self._peer, local, [self._block(run) for run in runs])

    def _block(self, run: Run) -> Block:
        address, _, device = self._regions[run.region]
        return (address + run.offset, run.nbytes, device)

    def _land(self, flight: _Flight) -> None:
        if not self._wait(flight, self._stall_timeout):
            raise TransferTimeout(
                f"nothing arrived for {self._stall_timeout:g} s: the source is stopped or the network is; "
                "MX_STALL_TIMEOUT sets how long to wait"
            )
        self._agent.native.release(flight.handle)
        for part in flight.parts:
            self._crew.land(part)

    def _wait(self, flight: _Flight, seconds: float) -> bool:
        """Return whether a batch has landed within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self._agent.native.landed(flight.handle):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _drain(self, flights: Sequence[_Flight]) -> None:
        """See to it that nothing of these batches lands any more."""
        deadline = time.monotonic() + self._stall_timeout
        for flight in flights:
            # One that failed is over as well; and once the agent was ended, all are.
            with suppress(TransportError):
                if not self._wait(flight, max(deadline - time.monotonic(), 0)):
                    self._agent.native.end()
            with suppress(TransportError):
                self._agent.native.release(flight.handle)


def _merged(runs: Iterator[Run]) -> Iterator[Run]:
    """Join runs that follow one another on both sides: parts were cut smaller than a batch."""
    current: Run | None = None
    for run in runs:
        if (
            current is not None
            and run.region == current.region
            and run.offset == current.offset + current.nbytes
            and run.address == current.address + current.nbytes
        ):
            current = Run(current.region, current.offset, current.address, current.nbytes + run.nbytes)
            continue
        if current is not None:
            yield current
        current = run
    if current is not None:
        yield current
