"""The target's side of `local` where a GPU is involved: streams that copy between mapped regions and destinations."""

import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelexpress.errors import PeerLost, TransportError
from modelexpress.memory.cuda_copy import Event
from modelexpress.transport.base import LinkLimit, Reader, Run, Transfer
from modelexpress.transport.crew import Crew, Part
from modelexpress.transport.device_limit import link_limit
from modelexpress.transport.device_mapping import DeviceMapping
from modelexpress.transport.lane import AHEAD, Lane, borrowed_lane, staging_lanes
from modelexpress.transport.local_reader import copy_exactly, said_by_source
from modelexpress.transport.passing import close_all
from modelexpress.transport.unmapping import afterwards

FAREWELL = b"\x01"
"""A reader that has read everything says so before it unmaps: its lease can end while that is under way."""

PART_BYTES = 128 << 20
"""A part is told of as a whole: at 400 GB/s this one takes 0.3 ms."""
STREAMS = 2
"""One could do, as each is given parts ahead; two share the pauses between copies that come one by one."""
STAGED_PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Opening:
    """What opening took, in seconds: `handover` to receive and check, `map_first` for the first region's beginning."""

    handover: float
    map_first: float


class DeviceReader(Reader):
    """Copies on streams of its own between a source's regions and the memory of one device, or from it to the host.

    Args:
        sock: The connection on which the source let this reader in; silent until the source withdraws.
        mapping: The regions that are device memory; owned by the reader from now on.
        files: Descriptors of the regions that are host memory, by number; owned as well.
        region_bytes: The sizes of all.
        peers: UUIDs of the devices whose memory the regions are.
        device: The device that copies.
        to_device: Whether destinations are that device's memory; else they are host memory.
        opening: What it took so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        mapping: DeviceMapping,
        files: Mapping[int, int],
        region_bytes: Sequence[int],
        peers: tuple[bytes, ...],
        device: int,
        *,
        to_device: bool,
        opening: Opening,
    ) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self.mapping = mapping
        self._files = files
        self._peers = peers
        self._device = device
        self._to_device = to_device
        self.opening = opening
        self._closed = False
        staged = not to_device or bool(files)
        threads = staging_lanes() if staged else STREAMS
        part_bytes = STAGED_PART_BYTES if staged else PART_BYTES
        self._crew = Crew("mx-device-copy", region_bytes, [self._work] * threads, part_bytes)
        mapping.start()

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def limit(self) -> LinkLimit | None:
        """Return how fast the driver copies over this link; None where it cannot. The first time takes milliseconds.

        To be called while nothing is read, before the reader is closed.
        """
        return link_limit(self._device, self._peers, self.mapping.largest(), to_device=self._to_device)

    def advice(self) -> str:
        return self.mapping.advice()

    def close(self) -> None:
        """End every transfer. No late byte lands any more; the mappings are given back in the background."""
        self._crew.close()
        self.mapping.stop()
        self._crew.join()
        if self._closed:
            return
        self._closed = True
        close_all(list(self._files.values()))
        self._say_farewell()
        afterwards(self._give_back)

    def _say_farewell(self) -> None:
        try:
            self._sock.send(FAREWELL)
        except OSError:
            return  # the source has gone

    def _give_back(self) -> None:
        self.mapping.close()
        # Last: the source waits for this before it frees what was mapped here.
        self._sock.close()

    def _work(self) -> None:
        try:
            with borrowed_lane(self._device) as lane:
                self._copy_parts(lane)
        except TransportError as error:
            self._crew.fail(error)
        except OSError as error:
            self._crew.fail(PeerLost(f"the source's memory cannot be read: {error}"))

    def _copy_parts(self, lane: Lane) -> None:
        """Copy parts until the crew ends; while one travels, the next is enqueued behind it."""
        travelling: deque[tuple[Part, Event]] = deque()
        while (part := self._crew.take(block=not travelling)) is not None or travelling:
            if part is not None:
                if not self._is_mapped(part):
                    self._land(travelling, 0)  # what has arrived is told before this thread waits
                self._enqueue(part, lane)
                travelling.append((part, lane.mark()))
            self._land(travelling, AHEAD - 1 if part is not None else 0)

    def _land(self, travelling: deque[tuple[Part, Event]], left: int) -> None:
        """Wait for the oldest parts until only so many are under way."""
        while len(travelling) > left:
            part, mark = travelling.popleft()
            mark.wait()
            # Asked after the copy: what was copied before the source withdrew it is what it offered.
            if (ended := said_by_source(self._sock, outlived=False)) is not None:
                raise ended
            self._crew.land(part)

    def _is_mapped(self, part: Part) -> bool:
        return all(run.region in self._files or self.mapping.covers(run.region, _end(run)) for run in part.runs)

    def _enqueue(self, part: Part, lane: Lane) -> None:
        """Give a part to the lane; what goes to host memory is in place on return."""
        copies: list[tuple[int, int, int]] = []
        reads: list[tuple[int, int, int, int]] = []
        for run in part.runs:
            if (file := self._files.get(run.region)) is not None:
                if self._to_device:
                    reads.append((run.address, file, run.offset, run.nbytes))
                else:
                    copy_exactly(file, run)
                continue
            source = self.mapping.address(run.region, _end(run)) + run.offset
            if self._to_device:
                copies.append((run.address, source, run.nbytes))
            else:
                lane.copy_out(run.address, source, run.nbytes)
        lane.copy_all(copies)
        lane.copy_files(reads)


def _end(run: Run) -> int:
    return run.offset + run.nbytes
