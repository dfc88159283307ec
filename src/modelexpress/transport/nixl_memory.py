"""The memory that an agent has registered: whole ranges, each once however many use it."""

import bisect
import itertools
import mmap
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modelexpress.memory import HostArena
from modelexpress.transport.nixl_native import Block, NativeAgent


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """A range of this process's addresses."""

    address: int
    nbytes: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.nbytes


class Registrations:
    """Counts who uses which registered range.

    Registering again what was deregistered makes new keys, but a target that keeps the source connected keeps
    the old ones for the same range. So each registration has a number, which stands where device memory has the
    number of its device.
    """

    def __init__(self, native: NativeAgent) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._users: dict[Span, int] = {}
        self._blocks: dict[Span, Block] = {}

    def hold(self, span: Span) -> Block:
        """Return the registration of a range, which stays until it is `let_go` as often.

        Raises:
            TransportUnavailable: The memory cannot be registered.
            PeerLost: The agent was ended.
        """
        with self._lock:
            if span not in self._blocks:
                block = (span.address, span.nbytes, next(self._numbers))
                self._native.register(block)
                self._blocks[span] = block
            self._users[span] = self._users.get(span, 0) + 1
            return self._blocks[span]

    def let_go(self, span: Span) -> None:
        """Give a range up; the last user deregisters it."""
        with self._lock:
            self._users[span] -= 1
            if self._users[span] == 0:
                del self._users[span]
                block = self._blocks.pop(span)
                if self._native.usable:
                    self._native.deregister(block)


class Landing:
    """Where one reader's bytes may land: ranges that are registered when they are first needed.

    A destination within an arena stands for the whole arena; others are registered with their neighbours, in
    whole pages. Used by one thread.
    """

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations
        self._starts: list[int] = []
        self._held: list[tuple[Span, Block]] = []

    def cover(self, spans: Iterable[Span]) -> None:
        """Register whatever of `spans` is not registered yet.

        Raises:
            TransportUnavailable: Some of the memory cannot be registered.
            PeerLost: The agent was ended.
        """
        new = (_surroundings(span) for span in spans if self._holding(span) is None)
        for span in united(new):
            block = self._registrations.hold(span)
            place = bisect.bisect(self._starts, span.address)
            self._starts.insert(place, span.address)
            self._held.insert(place, (span, block))

    def block(self, span: Span) -> Block:
        """Return a covered range as a transfer names it."""
        holding = self._holding(span)
        assert holding is not None, "ranges are covered before they are used"
        return (span.address, span.nbytes, holding[2])

    def release(self) -> None:
        """Give every range up; no transfer uses them any more."""
        self._starts.clear()
        while self._held:
            self._registrations.let_go(self._held.pop()[0])

    def _holding(self, span: Span) -> Block | None:
        # Nearly always the nearest one below; ranges of different reads may overlap, so then the others.
        for held, block in reversed(self._held[: bisect.bisect(self._starts, span.address)]):
            if span.end <= held.end:
                return block
        return None


def _surroundings(span: Span) -> Span:
    """Return what to register for a destination: its arena, or the pages that it touches."""
    if (arena := HostArena.holding(span.address, span.nbytes)) is not None:
        return Span(arena.region.address, arena.region.nbytes)
    start = span.address // mmap.PAGESIZE * mmap.PAGESIZE
    return Span(start, -(-span.end // mmap.PAGESIZE) * mmap.PAGESIZE - start)


def united(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield ranges with those that touch them joined; what lies between them is never registered."""
    current: Span | None = None
    for span in sorted(spans):
        if current is not None and span.address <= current.end:
            current = Span(current.address, max(current.end, span.end) - current.address)
            continue
        if current is not None:
            yield current
        current = span
    if current is not None:
        yield current
