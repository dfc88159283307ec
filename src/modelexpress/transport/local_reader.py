"""The target's side of `local`: mapped regions, and threads that copy out of them."""

import ctypes
import os
import socket
from collections.abc import Sequence

from modelexpress.errors import PeerLost, RegionWithdrawn, TransportError
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import Crew
from modelexpress.transport.mapping import MappedRegion
from modelexpress.transport.verdict import ANSWER_BYTES, decode_answer, error_of


def copy_threads() -> int:
    """Return how many threads copy by default: half of the cores this process may use, at most four."""
    return min(4, max(1, len(os.sched_getaffinity(0)) // 2))


class LocalReader(Reader):
    """Copies out of the mapped memory of a source.

    The connection stays open and silent: a source that withdraws its memory says so on it. One that dies leaves
    its memory as it was, so what is on its way is finished.

    Args:
        sock: The connection on which the source let this reader in.
        regions: The mapped regions, owned by the reader from now on.
        threads: How many threads copy.
    """

    def __init__(self, sock: socket.socket, regions: Sequence[MappedRegion], threads: int) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._regions = regions
        self._crew = Crew("mx-local-copy", [self._work] * threads)

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def close(self) -> None:
        self._crew.close()
        self._crew.join()
        self._sock.close()
        for region in self._regions:
            region.close()

    def _work(self) -> None:
        while (part := self._crew.take(block=True)) is not None:
            if (problem := self._out_of_range(part.runs)) is not None:
                self._crew.refuse(part, RegionWithdrawn(problem))
                continue
            for run in part.runs:
                ctypes.memmove(run.address, self._regions[run.region].address + run.offset, run.nbytes)
            # Asked after the copy: what was copied before the source withdrew its memory is what it offered.
            if (ended := self._ended()) is not None:
                self._crew.fail(ended)
            else:
                self._crew.land(part)

    def _out_of_range(self, runs: Sequence[Run]) -> str | None:
        for run in runs:
            if run.region >= len(self._regions):
                return f"region {run.region} was asked for; the source offers {len(self._regions)}"
            nbytes = self._regions[run.region].nbytes
            if run.offset + run.nbytes > nbytes:
                return f"region {run.region} ends at {nbytes}; {run.nbytes} bytes at {run.offset} were asked for"
        return None

    def _ended(self) -> TransportError | None:
        """Return what the source has said since it let this reader in."""
        try:
            # Looked at and left there, for the other threads.
            said = self._sock.recv(ANSWER_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            return PeerLost(f"the connection to the source broke: {error}")
        if len(said) < ANSWER_BYTES:
            return None  # the source is gone, its memory is not
        return error_of(decode_answer(said)[0])
