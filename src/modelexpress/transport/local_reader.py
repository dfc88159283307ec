"""The target's side of `local`: threads that copy from the source's memory straight into the destinations."""

import os
import socket
from collections.abc import Sequence

from modelexpress.errors import PeerLost, TransportError
from modelexpress.memory import memory_view
from modelexpress.memory.file_backed import file_behind, send
from modelexpress.transport.base import Reader, Run, Transfer
from modelexpress.transport.crew import Crew
from modelexpress.transport.pages import PIECE_BYTES, make_ready
from modelexpress.transport.passing import close_all
from modelexpress.transport.verdict import ANSWER_BYTES, decode_answer, error_of

_WORTH_SENDING = 1 << 20
"""Bytes of a run from which on the calls that it takes to write to a file cost little."""


def copy_threads() -> int:
    """Return how many threads copy by default: one for each core that this process may use, at most four."""
    return min(4, len(os.sched_getaffinity(0)))


class LocalReader(Reader):
    """Copies out of the memory of a source, by its descriptors.

    The kernel copies between the pages of both processes (preadv), which needs no mapping: setting one up page by
    page costs more than reading does, it would count as memory of the target, and a source that shrinks its memory
    could kill the target through it.

    The connection stays open and silent: a source that withdraws its memory says so on it. One that dies leaves
    its memory as it was, so what is on its way is finished.

    Args:
        sock: The connection on which the source let this reader in.
        descriptors: The regions; both are owned by the reader from now on.
        region_bytes: Their sizes.
        threads: How many threads copy.
    """

    def __init__(self, sock: socket.socket, descriptors: list[int], region_bytes: Sequence[int], threads: int) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._descriptors = descriptors
        self._crew = Crew("mx-local-copy", region_bytes, [self._work] * threads)

    def read(self, runs: Sequence[Run]) -> Transfer:
        return self._crew.submit(runs)

    def close(self) -> None:
        self._crew.close()
        self._crew.join()
        self._sock.close()
        close_all(self._descriptors)

    def _work(self) -> None:
        while (part := self._crew.take(block=True)) is not None:
            try:
                for run in part.runs:
                    copy_exactly(self._descriptors[run.region], run)
                # Asked after the copy: what was copied before the source withdrew its memory is what it offered.
                ended: TransportError | None = said_by_source(self._sock)
            except OSError as error:
                ended = PeerLost(f"the source's memory cannot be copied: {error}")
            except TransportError as error:
                ended = error
            if ended is not None:
                self._crew.fail(ended)
            else:
                self._crew.land(part)


def said_by_source(sock: socket.socket, *, outlived: bool = True) -> TransportError | None:
    """Return what a source has said on a silent connection since it let this reader in; None: nothing.

    Args:
        sock: The connection, not blocking.
        outlived: Whether the memory that is read outlives the source.

    Raises:
        OSError: The connection broke.
    """
    try:
        # Looked at and left there, for the other threads.
        said = sock.recv(ANSWER_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    if len(said) < ANSWER_BYTES:
        return None if outlived else PeerLost("the source's process has ended")
    return error_of(decode_answer(said)[0])


def copy_exactly(descriptor: int, run: Run) -> None:
    """Copy a run from a descriptor's memory.

    Raises:
        PeerLost: The memory ends early.
        OSError: It cannot be read.
    """
    done = _sent_to_file(descriptor, run) if run.nbytes >= _WORTH_SENDING else 0
    while done < run.nbytes:
        size = min(PIECE_BYTES, run.nbytes - done)
        make_ready(run.address + done, size)
        count = os.preadv(descriptor, [memory_view(run.address + done, size)], run.offset + done)
        if count == 0:
            raise PeerLost("the source's memory ended before its region did")
        done += count


def _sent_to_file(descriptor: int, run: Run) -> int:
    """Copy into the file that a run's destination is a part of, if it is one's; return how many bytes are there."""
    file = file_behind(run.address, run.nbytes)
    return 0 if file is None else send(*file, descriptor, run.offset, run.nbytes)
