"""The memory that an agent has registered: whole ranges, each once however many use it."""

import bisect
import itertools
import mmap
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from modelexpress.errors import PeerLost
from modelexpress.memory import HostArena, Region
from modelexpress.transport.base import Run
from modelexpress.transport.nixl_device import Ground, made_current
from modelexpress.transport.nixl_native import Block, NativeAgent, Segment

_DEVICE_BITS = 16


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """A range of this process's addresses. No address belongs to two devices, so that it alone tells spans apart."""

    address: int
    nbytes: int
    device: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, region: Region) -> "Span":
        """Return the range of a region."""
        return cls(region.address, region.nbytes, region.device)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.nbytes

    @property
    def segment(self) -> Segment:
        """What kind of memory it is."""
        return Segment.HOST if self.device is None else Segment.DEVICE

    def holds(self, other: "Span") -> bool:
        """Return whether another range lies within this one."""
        return self.address <= other.address and other.end <= self.end


class Registrations:
    """Counts who uses which registered range.

    Registering again what was deregistered makes new keys, but a target that keeps the source connected keeps
    the old ones for the same range. So each registration has a number. It stands where NIXL takes the device; of
    device memory the number of the device is in its lowest 16 bits. Over libfabric, which looks at the device, it is
    the device alone: `Peers` keeps nobody connected there.
    """

    def __init__(self, native: NativeAgent) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._users: dict[Span, int] = {}
        self._blocks: dict[Span, Block] = {}

    def hold(self, span: Span) -> Block:
        """Return the registration of a range, as `hold_all` does."""
        return self.hold_all([span])[0]

    def hold_all(self, spans: Sequence[Span]) -> list[Block]:
        """Return the registrations of ranges, which stay until they are `let_go` as often.

        What is not registered yet is registered now, in one call for the host and one for each device.

        Raises:
            TransportUnavailable: The memory cannot be registered; nothing is held.
            PeerLost: The agent was ended.
        """
        with self._lock:
            # By address: NIXL keeps them in this order, and moves all behind the one that it puts between.
            self._blocks |= self._register(sorted({span for span in spans if span not in self._blocks}))
            for span in spans:
                self._users[span] = self._users.get(span, 0) + 1
            return [self._blocks[span] for span in spans]

    def let_go(self, *spans: Span) -> None:
        """Give ranges up; the last user of each deregisters it."""
        with self._lock:
            unused = []
            for span in spans:
                self._users[span] -= 1
                if self._users[span] == 0:
                    del self._users[span]
                    unused.append(span)
            for segment in Segment:
                # From the end: see `hold_all`.
                group = sorted((span for span in unused if span.segment is segment), reverse=True)
                if group:
                    with suppress(PeerLost):  # the agent has ended, and its registrations with it
                        self._native.deregister(*(self._blocks.pop(span) for span in group), segment=segment)

    def _register(self, spans: Sequence[Span]) -> dict[Span, Block]:
        blocks = {span: self._block(span) for span in spans}
        with ExitStack() as undo:
            for device in {span.device for span in spans}:
                group = [blocks[span] for span in spans if span.device == device]
                segment = Segment.HOST if device is None else Segment.DEVICE
                with made_current(device):
                    self._native.register(*group, segment=segment)
                undo.callback(self._native.deregister, *group, segment=segment)
            undo.pop_all()
        return blocks

    def _block(self, span: Span) -> Block:
        number = next(self._numbers)
        if span.device is not None:
            number = span.device if self._native.backend == "LIBFABRIC" else span.device | number << _DEVICE_BITS
        return (span.address, span.nbytes, number)


class Landing:
    """Where one reader's bytes may land: ranges that are registered when they are first needed.

    This one is for host memory. A destination within an arena stands for the whole arena; others are registered with
    their neighbours, in whole pages. Used by one thread.
    """

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations
        self._held: list[tuple[Span, Block]] = []  # in the order of their addresses
        self._last: tuple[Span, Block] | None = None

    def fit(self, runs: Iterable[Run]) -> list[Run]:
        """Return runs cut so that each of them can be copied as a whole.

        Raises:
            TransportError: Some of the destinations are not where they should be.
        """
        return list(runs)

    def blocks(self, spans: Sequence[Span]) -> list[Block]:
        """Return destinations as a transfer names them; what is not registered yet is registered now.

        Raises:
            TransportUnavailable: Some of the memory cannot be registered.
            PeerLost: The agent was ended.
        """
        if missing := [span for span in spans if not self._covers(span)]:
            whole = list(self._wholes(missing))
            for held in zip(whole, self._registrations.hold_all(whole), strict=True):
                bisect.insort(self._held, held)
        return [(span.address, span.nbytes, self._device(span)) for span in spans]

    def release(self) -> None:
        """Give every range up; no transfer uses them any more."""
        self._last = None
        held, self._held = self._held, []
        self._registrations.let_go(*(span for span, _ in held))

    def _wholes(self, spans: Sequence[Span]) -> Iterable[Span]:
        """Return what to register for destinations, each of which lies within one of the ranges returned."""
        return united(_surroundings(span) for span in spans)

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


class DeviceLanding(Landing):
    """Where one reader's bytes may land in the memory of one device: whole allocations, each registered by itself."""

    def __init__(self, registrations: Registrations, device: int) -> None:
        super().__init__(registrations)
        self._ground = Ground(device)

    def fit(self, runs: Iterable[Run]) -> list[Run]:
        whole = list(runs)
        self._ground.explore(whole)
        return [piece for run in whole for piece in self._cut(run)]

    def _wholes(self, spans: Sequence[Span]) -> Iterable[Span]:
        return {Span.of(self._ground.under(span.address)) for span in spans}

    def _cut(self, run: Run) -> Iterator[Run]:
        """Yield a run in pieces that end where allocations do: neighbours by chance are not one to the driver."""
        done = 0
        while done < run.nbytes:
            address = run.address + done
            size = min(run.nbytes - done, Span.of(self._ground.under(address)).end - address)
            yield Run(run.region, run.offset + done, address, size)
            done += size


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
