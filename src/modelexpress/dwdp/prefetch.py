"""Fetching a layer's experts from the other ranks while the layers before it are computed.

One event of each slot says that its experts are there (prefetched), another that they are not needed any more
(consumed). After a layer was computed, the next layer of its slot is fetched, across the end of a forward too: what
the next forward begins with is on its way while the last one ends.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from modelexpress.dwdp.pages import SLOTS, slot_of
from modelexpress.dwdp.streams import Copy, Event, Machine, Stream

SLICE_BYTES = 2 << 20
T = TypeVar("T", Stream, Event)


class Observer:
    """Looks at what a prefetcher enqueues: a timeline, or a test that wants to know about order.

    By itself it does nothing: override what is of interest.
    """

    def attached(self, machine: Machine, layers: int, lanes: int) -> None:
        """The prefetcher was made: its machine, the number of layers, and of streams that copy for each."""

    def fetching(self, position: int, lane: Stream) -> None:
        """The copies of a layer follow in this stream."""

    def fetched(self, position: int, joint: Stream) -> None:
        """All copies of a layer are done when this stream gets here."""

    def waiting(self, position: int, compute: Stream) -> None:
        """This stream, when it gets here, waits until the layer's experts are there."""

    def computing(self, position: int, compute: Stream) -> None:
        """The layer's experts are computed next in this stream."""

    def computed(self, position: int, compute: Stream) -> None:
        """The layer's experts are computed when this stream gets here."""

    def detached(self) -> None:
        """Nothing is enqueued any more, and all copies are done; the streams are about to be given back."""


@dataclass
class _Slot:
    """Half of the double buffer, and which layer's experts are in it, or on their way."""

    prefetched: Event
    consumed: Event
    holds: int | None = None
    readers: list[Stream] = field(default_factory=list)
    """The streams that have waited for it, and have not released it."""

    def consumed_by(self, compute: Stream) -> None:
        """Mark it as consumed where a stream is now, and all others that read it are."""
        for reader in self.readers:
            if reader is not compute:
                reader.record(self.consumed)
                compute.wait(self.consumed)
        compute.record(self.consumed)
        self.readers.clear()


class Prefetcher:
    """Copies of all layers, and their order. Nothing here allocates, or waits for the device, between layers.

    Args:
        machine: Makes streams and events.
        layers: For each layer, for each lane, what is copied. A lane is a stream of its own: one for each peer.
        observer: Is told what is enqueued.

    Raises:
        DeviceError: The device gives no streams.
    """

    def __init__(
        self, machine: Machine, layers: Sequence[Sequence[Sequence[Copy]]], observer: Observer | None = None
    ) -> None:
        self._machine = machine
        self._layers = layers
        self._observer = observer
        with ExitStack() as undo:
            self._lanes = [self._made(machine.stream(), undo) for _ in layers[0]]
            self._joint = self._made(machine.stream(), undo)
            self._done = [self._made(machine.event(), undo) for _ in layers[0]]
            self._slots = [
                _Slot(self._made(machine.event(), undo), self._made(machine.event(), undo)) for _ in range(SLOTS)
            ]
            if observer is not None:
                observer.attached(machine, len(layers), len(self._lanes))
            self._undo = undo.pop_all()

    def begin(self) -> None:
        """Fetch what a forward needs first, unless it is there or on its way already."""
        for position in range(min(SLOTS, len(self._layers))):
            self._ensure(position)

    def wait(self, position: int) -> None:
        """Let what the model enqueues from now on begin when a layer's experts are there; once in a layer is enough."""
        slot, compute = self._slots[slot_of(position)], self._machine.compute()
        if slot.holds == position and compute in slot.readers:
            return
        self._ensure(position)
        if self._observer is not None:
            self._observer.waiting(position, compute)
        compute.wait(slot.prefetched)
        slot.readers.append(compute)
        if self._observer is not None:
            self._observer.computing(position, compute)

    def release(self, position: int) -> None:
        """Say that all that reads a layer's experts was enqueued: the next layer of the slot is fetched."""
        slot, compute = self._slots[slot_of(position)], self._machine.compute()
        if self._observer is not None:
            self._observer.computed(position, compute)
        slot.consumed_by(compute)
        following = position + SLOTS
        self._fetch(following if following < len(self._layers) else slot_of(position))

    def close(self) -> None:
        """Wait until nothing is copied or computed any more, and give streams and events back. Twice is allowed.

        Raises:
            DeviceError: The device failed meanwhile.
        """
        lanes, self._lanes = self._lanes, []
        if not lanes:
            return
        observer, self._observer = self._observer, None
        with self._undo:
            self._machine.finish()  # what reads a slot still may be in any stream
            for stream in (*lanes, self._joint):
                stream.finish()
            if observer is not None:
                observer.detached()

    def _ensure(self, position: int) -> None:
        slot = self._slots[slot_of(position)]
        if slot.holds == position:
            return
        # A forward that broke off, or skips layers: whatever reads the slot has been enqueued by now, and what was on
        # its way into it must have arrived, in all lanes.
        slot.consumed_by(self._machine.compute())
        for lane in self._lanes:
            lane.wait(slot.prefetched)
        self._fetch(position)

    def _fetch(self, position: int) -> None:
        slot = self._slots[slot_of(position)]
        if slot.holds == position:
            return
        slot.holds = None
        for lane, done, copies in zip(self._lanes, self._done, self._layers[position], strict=True):
            lane.wait(slot.consumed)
            if self._observer is not None:
                self._observer.fetching(position, lane)
            lane.copy_all(copies)
            lane.record(done)
            self._joint.wait(done)
        if self._observer is not None:
            self._observer.fetched(position, self._joint)
        self._joint.record(slot.prefetched)
        slot.holds = position

    @staticmethod
    def _made(thing: T, undo: ExitStack) -> T:
        undo.callback(thing.close)
        return thing


def in_turn(lanes: Sequence[Sequence[Copy]], slice_bytes: int = SLICE_BYTES) -> list[Copy]:
    """Return the copies of all lanes as one, cut into slices that come from each peer in turn."""
    sliced = [[part for copy in lane for part in _slices(copy, slice_bytes)] for lane in lanes]
    longest = max(map(len, sliced), default=0)
    return [lane[turn] for turn in range(longest) for lane in sliced if turn < len(lane)]


def _slices(copy: Copy, slice_bytes: int) -> list[Copy]:
    destination, source, nbytes = copy
    return [
        (destination + done, source + done, min(slice_bytes, nbytes - done)) for done in range(0, nbytes, slice_bytes)
    ]
