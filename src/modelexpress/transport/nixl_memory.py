"""The memory that an agent has registered: whole ranges, each once however many use it."""

import bisect
import itertools
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from modelexpress.errors import PeerLost
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

    def holds(self, other: "Span") -> bool:
        """Return whether another range lies within this one."""
        return self.address <= other.address and other.end <= self.end


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
                with suppress(PeerLost):  # the agent has ended, and its registrations with it
                    self._native.deregister(self._blocks.pop(span))


class Landing:
    """Where one reader's bytes may land: ranges that are registered when they are first needed.

    A destination within an arena stands for the whole arena; others are registered with their neighbours, in
    whole pages. Used by one thread.
    """

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations
        self._held: list[tuple[Span, Block]] = []  # in the order of their addresses
        self._last: tuple[Span, Block] | None = None

    def blocks(self, spans: Sequence[Span]) -> list[Block]:
        """Return destinations as a transfer names them; what is not registered yet is registered now.

        Raises:
            TransportUnavailable: Some of the memory cannot be registered.
            PeerLost: The agent was ended.
        """
        for span in united(_surroundings(span) for span in spans if not self._covers(span)):
            bisect.insort(self._held, (span, self._registrations.hold(span)))
        return [(span.address, span.nbytes, self._device(span)) for span in spans]

    def release(self) -> None:
        """Give every range up; no transfer uses them any more."""
        self._last = None
        while self._held:
            self._registrations.let_go(self._held.pop()[0])

    def _device(self, span: Span) -> int:
        covered = self._covers(span)
        assert covered, "it was registered just now"
        assert self._last is not None
        return self._last[1][2]

    def _covers(self, span: Span) -> bool:
        """Return whether a range is registered; `_last` is then where."""
        if self._last is None or not self._last[0].holds(span):
            # Nearly always the nearest one below; ranges of different reads may overlap, so then the others.
            below = bisect.bisect(self._held, span.address, key=lambda held: held[0].address)
            self._last = next((held for held in reversed(self._held[:below]) if held[0].holds(span)), None)
        return self._last is not None


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
