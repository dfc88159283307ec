"""Device memory as blocks of host memory: a few pinned buffers, each filled while another one is emptied."""

import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle

from modelexpress.memory import memory_view
from modelexpress.transport.staging_driver import StagingDriver

PIECE_BYTES = 2 << 20
"""A buffer: the device fills one in some 40 microseconds, a connection takes ten times as long to empty it."""
SLOTS = 2
MOST_PINNED_BYTES = 128 << 20
"""Page-locked memory of a process: enough for 32 threads. Further ones copy by way of ordinary memory: the driver does
that at 9 instead of 55 GB/s, which is still more than a connection carries."""

Range = tuple[int, int]
"""Address and bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Ranges that share one buffer, side by side and in order: where in the buffer each begins, address and bytes.

    Args:
        rows: The ranges.
        nbytes: How much of the buffer they fill.
    """

    rows: tuple[tuple[int, int, int], ...]
    nbytes: int


def pack(ranges: Sequence[Range], most: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the ranges in pieces of `most` bytes, the last one of what is left; those of no bytes are left out."""
    rows: list[tuple[int, int, int]] = []
    filled = 0
    for address, nbytes in ranges:
        end = address + nbytes
        while address < end:
            size = min(end - address, most - filled)
            rows.append((filled, address, size))
            address += size
            filled += size
            if filled == most:
                yield Piece(tuple(rows), filled)
                rows, filled = [], 0
    if rows:
        yield Piece(tuple(rows), filled)


class Stage:
    """Buffers and streams between the host and one device, for one thread.

    Args:
        cuda: The driver.
        device: The device whose memory is read or written.

    Raises:
        DeviceError: The device cannot be used, or gives no more memory.
    """

    def __init__(self, cuda: StagingDriver, device: int) -> None:
        with ExitStack() as undo:
            self._slots = [_Slot(cuda, device, undo) for _ in range(SLOTS)]
            self._exit = undo.pop_all()

    def read(self, ranges: Sequence[Range]) -> Iterator[memoryview]:
        """Yield the bytes of device memory in order, in blocks that hold until the next one is asked for.

        While the caller uses a block, the device fills the next one.

        Raises:
            DeviceError: A copy failed.
        """
        ready: _Slot | None = None
        for slot, piece in zip(cycle(self._slots), pack(ranges), strict=False):
            slot.fill(piece)
            if ready is not None:
                yield ready.content()
            ready = slot
        if ready is not None:
            yield ready.content()

    def write(self, ranges: Sequence[Range]) -> Iterator[memoryview]:
        """Yield blocks for the caller to fill, in order; when it asks for one more, the one before goes to the device.

        When there are no more, everything is in place.

        Raises:
            DeviceError: A copy failed.
        """
        for slot, piece in zip(cycle(self._slots), pack(ranges), strict=False):
            yield slot.room(piece.nbytes)
            slot.empty(piece)
        for slot in self._slots:
            slot.finish()

    def close(self) -> None:
        """Give buffers and streams back once no copy is under way. Closing twice is allowed.

        Raises:
            DeviceError: The driver failed; everything that it still takes was given back.
        """
        self._exit.close()


class _Slot:
    """One buffer, and a stream of its own: waiting for it is not waiting for the other one's copies."""

    def __init__(self, cuda: StagingDriver, device: int, undo: ExitStack) -> None:
        self._cuda = cuda
        self._device = device
        self._nbytes = 0
        self._under_way = False
        self._address = undo.enter_context(_buffer(cuda, device))
        with cuda.on(device):
            self._stream = cuda.stream()
        undo.callback(self._close_stream)
        undo.callback(self.finish)

    def fill(self, piece: Piece) -> None:
        """Let the device copy its memory here."""
        self._start((self._address + at, address, nbytes) for at, address, nbytes in piece.rows)
        self._nbytes = piece.nbytes

    def content(self) -> memoryview:
        """Return what was copied here."""
        self.finish()
        return memory_view(self._address, self._nbytes)

    def room(self, nbytes: int) -> memoryview:
        """Return the buffer once the device has taken what was in it."""
        self.finish()
        return memory_view(self._address, nbytes)

    def empty(self, piece: Piece) -> None:
        """Let the device copy to its memory from here."""
        self._start((address, self._address + at, nbytes) for at, address, nbytes in piece.rows)

    def finish(self) -> None:
        """Wait until no copy is under way."""
        if self._under_way:
            self._under_way = False
            with self._cuda.on(self._device):
                self._stream.finish()

    def _start(self, copies: Iterable[tuple[int, int, int]]) -> None:
        """Enqueue copies: destination, source, bytes."""
        self._under_way = True
        with self._cuda.on(self._device):
            for destination, source, nbytes in copies:
                self._stream.copy(destination, source, nbytes)

    def _close_stream(self) -> None:
        with self._cuda.on(self._device):
            self._stream.close()


class _Budget:
    """How much page-locked memory this process may still take."""

    def __init__(self, nbytes: int) -> None:
        self._lock = threading.Lock()
        self._left = nbytes

    def take(self, nbytes: int) -> bool:
        """Return whether there was enough left."""
        with self._lock:
            enough = nbytes <= self._left
            self._left -= nbytes if enough else 0
        return enough

    def give_back(self, nbytes: int) -> None:
        """Let others have it."""
        with self._lock:
            self._left += nbytes


_budget = _Budget(MOST_PINNED_BYTES)


@contextmanager
def _buffer(cuda: StagingDriver, device: int) -> Iterator[int]:
    """Yield the address of a buffer, page-locked where the budget allows that."""
    if not _budget.take(PIECE_BYTES):
        memory = (ctypes.c_ubyte * PIECE_BYTES)()
        yield ctypes.addressof(memory)
        return
    try:
        with cuda.on(device):
            address = cuda.allocate_pinned(PIECE_BYTES)
        try:
            yield address
        finally:
            with cuda.on(device):
                cuda.free_pinned(address)
    finally:
        _budget.give_back(PIECE_BYTES)
