"""The target's side of `nixl`: one thread posts batches of reads, another listens to what the source says."""

import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby

from modelexpress.errors import PeerLost, TransferTimeout, TransportError
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import PART_BYTES, Crew, Part
from modelexpress.transport.nixl_agent import POLL_SECONDS, Agent
from modelexpress.transport.nixl_device import made_current, settle
from modelexpress.transport.nixl_memory import DeviceLanding, Landing, Span
from modelexpress.transport.nixl_native import PROGRESS_SECONDS, Block, Segment
from modelexpress.transport.stream import shut
from modelexpress.transport.verdict import ANSWER_BYTES, decode_answer, error_of

AHEAD = 3
"""Batches that are posted before the first of them has landed, so that the card never waits."""
BATCH_BYTES = 64 << 20
"""What one transfer of NIXL reads: a few milliseconds' worth, which is as long as `close` waits."""
DEVICE_BATCH_BYTES = 256 << 20
"""The same into device memory: 0.7 ms at the speed of NVLink. Each costs a tenth of that on this side."""


@dataclass(frozen=True, slots=True)
class SourceRegion:
    """A region of the source as NIXL names it, and what kind of memory it is."""

    block: Block
    segment: Segment


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch of parts on its way: the handles of what has not landed yet."""

    parts: tuple[Part, ...]
    handles: list[int] = field(default_factory=list)


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
        device: The device whose memory the runs go to; None: they go to host memory.
    """

    def __init__(
        self,
        sock: socket.socket,
        agent: Agent,
        peer: str,
        regions: Sequence[SourceRegion],
        stall_timeout: float,
        device: int | None = None,
    ) -> None:
        self._sock = sock
        self._agent = agent
        self._peer = peer
        self._regions = regions
        self._stall_timeout = stall_timeout
        self._device = device
        self._landing = Landing(agent.memory) if device is None else DeviceLanding(agent.memory, device)
        self._batch_bytes = BATCH_BYTES if device is None else DEVICE_BATCH_BYTES
        self._closing = False
        self._lost = False
        part_bytes = PART_BYTES if device is None else DEVICE_BATCH_BYTES
        self._crew = Crew("mx-nixl-read", [region.block[1] for region in regions], [self._work], part_bytes)
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
            with made_current(self._device):
                self._fly(flights)
        except TransportError as error:
            self._fail(error)
            self._drain(flights)

    def _fly(self, flights: deque[_Flight]) -> None:
        """Carry out what the crew is given, until it has ended; `flights` are those on their way."""
        while True:
            while len(flights) < AHEAD and (parts := tuple(self._take(block=not flights))):
                flights.append(_Flight(parts))
                self._post(flights[-1])
            if not flights:
                return
            self._land(flights[0])
            flights.popleft()

    def _take(self, block: bool) -> Iterator[Part]:
        """Yield the parts of the next batch; none when there is nothing to do."""
        nbytes = 0
        while nbytes < self._batch_bytes and (part := self._crew.take(block=block)) is not None:
            yield part
            nbytes += part.nbytes
            block = False

    def _post(self, flight: _Flight) -> None:
        runs = self._landing.fit(_merged(run for part in flight.parts for run in part.runs if run.nbytes))
        for segment, group in groupby(runs, key=lambda run: self._regions[run.region].segment):
            flight.handles.append(self._read(list(group), segment))

    def _read(self, runs: Sequence[Run], out_of: Segment) -> int:
        local = self._landing.blocks([Span(run.address, run.nbytes) for run in runs])
        remote = [self._block(run) for run in runs]
        into = Segment.HOST if self._device is None else Segment.DEVICE
        return self._agent.native.post(self._peer, local, remote, into=into, out_of=out_of)

    def _block(self, run: Run) -> Block:
        address, _, device = self._regions[run.region].block
        return (address + run.offset, run.nbytes, device)

    def _land(self, flight: _Flight) -> None:
        while flight.handles:
            if not self._wait(flight.handles[0], self._stall_timeout):
                raise TransferTimeout(
                    f"nothing arrived for {self._stall_timeout:g} s: the source is stopped or the network is; "
                    "MX_STALL_TIMEOUT sets how long to wait"
                )
            self._agent.native.release(flight.handles.pop(0))
        for part in flight.parts:
            self._crew.land(part)

    def _wait(self, handle: int, seconds: float) -> bool:
        """Return whether a transfer has landed within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self._agent.native.landed(handle):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _drain(self, flights: Iterable[_Flight]) -> None:
        """See to it that nothing of these batches lands any more."""
        deadline = time.monotonic() + self._stall_timeout
        handles = [handle for flight in flights for handle in flight.handles]
        for handle in handles:
            # One that failed is over as well; and once the agent was ended, all are.
            with suppress(TransportError):
                if not self._wait(handle, max(deadline - time.monotonic(), 0)):
                    self._agent.native.end()
        if self._device is not None:
            with suppress(TransportError):  # a device that failed does nothing any more
                settle(self._device)
        # UCX frees what its copies use when it sees that they are done, which is before anything is deregistered. This
        # goes for the other blocks of a batch that failed, too: NIXL waits for one of them.
        time.sleep(2 * PROGRESS_SECONDS)
        for handle in handles:
            with suppress(TransportError):
                self._agent.native.release(handle)


def _merged(runs: Iterable[Run]) -> Iterator[Run]:
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
