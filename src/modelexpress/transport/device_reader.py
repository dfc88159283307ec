"""The target's side of `local` where a GPU is involved: streams that copy between mapped regions and destinations."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing

from modelexpress.errors import PeerLost, TransportError
from modelexpress.memory.cuda_share import MappedDeviceRegion
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import Crew
from modelexpress.transport.lane import Lane
from modelexpress.transport.local_reader import copy_exactly, said_by_source
from modelexpress.transport.passing import close_all

PART_BYTES = 256 << 20
"""A part is waited for as a whole: at 400 GB/s this one takes 0.6 ms, against some 10 microseconds of waiting."""
STREAMS = 2
"""One copies while the thread of the other one is told that its part is done."""
STAGING_STREAMS = 6
"""Threads that fill pinned buffers from host memory: one core copies some 10 GB/s, PCIe takes five times that."""


class SourceRegion(ABC):
    """A region of the source as this process reaches it."""

    @abstractmethod
    def copy(self, run: Run, lane: Lane, *, to_device: bool) -> None:
        """Copy a run, or enqueue it on the lane."""

    @abstractmethod
    def close(self) -> None:
        """Give it back; no copy is under way."""


class HostRegion(SourceRegion):
    """Host memory behind a file descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = [descriptor]

    def copy(self, run: Run, lane: Lane, *, to_device: bool) -> None:
        if to_device:
            lane.copy_file(run.address, self._descriptor[0], run.offset, run.nbytes)
        else:
            copy_exactly(self._descriptor[0], run)

    def close(self) -> None:
        close_all(self._descriptor)


class DeviceRegion(SourceRegion):
    """Device memory, mapped here."""

    def __init__(self, mapped: MappedDeviceRegion) -> None:
        self._mapped = mapped

    def copy(self, run: Run, lane: Lane, *, to_device: bool) -> None:
        move = lane.copy if to_device else lane.copy_out
        move(run.address, self._mapped.address + run.offset, run.nbytes)

    def close(self) -> None:
        self._mapped.close()


class DeviceReader(Reader):
    """Copies on streams of its own between a source's regions and the memory of one device, or from it to the host.

    Args:
        sock: The connection on which the source let this reader in; silent until the source withdraws.
        regions: Owned by the reader from now on.
        region_bytes: Their sizes.
        device: The device that copies.
        to_device: Whether destinations are that device's memory; else they are host memory.
    """

    def __init__(
        self,
        sock: socket.socket,
        regions: Sequence[SourceRegion],
        region_bytes: Sequence[int],
        device: int,
        *,
        to_device: bool,
    ) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._regions = regions
        self._device = device
        self._to_device = to_device
        staged = not to_device or any(isinstance(region, HostRegion) for region in regions)
        threads = STAGING_STREAMS if staged else STREAMS
        part_bytes = PART_BYTES // threads if staged else PART_BYTES
        self._crew = Crew("mx-device-copy", region_bytes, [self._work] * threads, part_bytes)

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def close(self) -> None:
        self._crew.close()
        self._crew.join()
        for region in self._regions:
            region.close()
        # Last: the source waits for this before it frees what was mapped here.
        self._sock.close()

    def _work(self) -> None:
        try:
            with closing(Lane(self._device)) as lane:
                while (part := self._crew.take(block=True)) is not None:
                    for run in part.runs:
                        self._regions[run.region].copy(run, lane, to_device=self._to_device)
                    lane.finish()
                    # Asked after the copy: what was copied before the source withdrew it is what it offered.
                    if (ended := said_by_source(self._sock, outlived=False)) is not None:
                        raise ended
                    self._crew.land(part)
        except TransportError as error:
            self._crew.fail(error)
        except OSError as error:
            self._crew.fail(PeerLost(f"the source's memory cannot be read: {error}"))
