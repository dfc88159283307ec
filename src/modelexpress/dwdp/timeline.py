"""A timeline: when each layer's experts were fetched and computed, and how long computing waited for them.

Marks are put into streams while a model runs, and read when it has ended: nothing waits for them on the way. They are
made beforehand, for so many forwards, and used again: a timeline shows the last ones.

    compute  | between | wait | compute | between | compute |
    fetch        | fetch of 2 |     | fetch of 3 |

Computing begins when the wait for a layer's experts is over, and ends when the layer's block does. Between one layer
and the next is what is not shared: attention, norms, layers without experts.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from modelexpress.dwdp.prefetch import Observer
from modelexpress.dwdp.streams import Event, Machine, Stream
from modelexpress.dwdp.timeline_files import draw_spans, write_trace
from modelexpress.dwdp.timeline_spans import Kind, Span, Summary, summarised
from modelexpress.errors import DwdpError


class _Point(StrEnum):
    """What is marked of a layer, beside the beginning of each copying stream."""

    FETCHED = "fetched"
    WAITING = "waiting"
    COMPUTING = "computing"
    COMPUTED = "computed"


@dataclass
class _LayerMarks:
    """The marks of one layer in one forward."""

    starts: Sequence[Event]
    points: dict[_Point, Event]
    started: int = 0
    reached: set[_Point] = field(default_factory=set)

    def mark_start(self, stream: Stream) -> None:
        if self.started < len(self.starts):
            stream.record(self.starts[self.started])
            self.started += 1

    def mark(self, point: _Point, stream: Stream) -> None:
        """Mark a point, the first time that it comes: experts that run in chunks wait for themselves once."""
        if point not in self.reached:
            stream.record(self.points[point])
            self.reached.add(point)

    def reset(self) -> None:
        self.started = 0
        self.reached.clear()


class Timeline(Observer):
    """Records the last forwards of one rank; an observer for `enable` and `DwdpManager`.

    Args:
        forwards: How many are kept.

    Raises:
        DwdpError: That is less than one.

    Example:
        >>> timeline = Timeline(forwards=2)
        >>> with enable(model, config, observer=timeline):  # doctest: +SKIP
        ...     model(tokens)
        >>> timeline.draw("timeline.svg")  # doctest: +SKIP
    """

    def __init__(self, forwards: int = 3) -> None:
        if forwards < 1:
            raise DwdpError(f"a timeline of {forwards} forwards shows nothing: keep at least 1")
        self._forwards = forwards
        self._forget()

    def _forget(self) -> None:
        self._machine: Machine | None = None
        self._undo = ExitStack()
        self._rows: list[list[_LayerMarks]] = []
        self._streams: dict[int, Stream] = {}
        self._forward, self._last, self._newest = 0, -1, 0
        self._spans: tuple[Span, ...] = ()

    def attached(self, machine: Machine, layers: int, lanes: int) -> None:
        """Make all marks. What an earlier group left is forgotten."""
        self._undo.close()
        self._forget()
        self._machine = machine
        with ExitStack() as undo:
            # One row more than is kept: at the end of a forward the first layers of the next one are fetched.
            self._rows = [[self._made(machine, lanes, undo) for _ in range(layers)] for _ in range(self._forwards + 1)]
            self._undo = undo.pop_all()

    def fetching(self, position: int, lane: Stream) -> None:
        self._next_use(position, lane).mark_start(lane)

    def fetched(self, position: int, joint: Stream) -> None:
        self._next_use(position, joint).mark(_Point.FETCHED, joint)

    def waiting(self, position: int, compute: Stream) -> None:
        again = position == self._last and _Point.COMPUTED not in self._row(self._forward)[position].reached
        if position <= self._last and not again:
            self._forward += 1
        self._last = position
        self._mark(_Point.WAITING, position, compute)

    def computing(self, position: int, compute: Stream) -> None:
        self._mark(_Point.COMPUTING, position, compute)

    def computed(self, position: int, compute: Stream) -> None:
        self._mark(_Point.COMPUTED, position, compute)

    def detached(self) -> None:
        """Read the marks, and give them back."""
        with self._undo:
            self._spans = self._read()
            self._machine, self._rows, self._streams = None, [], {}

    def spans(self) -> tuple[Span, ...]:
        """Return what took place, in order of its beginning; while the group exists, everything enqueued is waited for.

        Raises:
            DeviceError: The device failed.
        """
        if self._machine is not None:
            self._spans = self._read()
        return self._spans

    def summary(self) -> Summary:
        """Return what each layer took on average.

        Raises:
            DwdpError: No layer was computed yet.
            DeviceError: The device failed.
        """
        return summarised(self.spans())

    def draw(self, path: str | Path) -> None:
        """Write a chart of computing above fetching, as SVG.

        Raises:
            DwdpError: No layer was computed yet.
            ConfigurationError: matplotlib is not installed.
        """
        draw_spans(Path(path), self.spans())

    def trace(self, path: str | Path, *, rank: int = 0) -> None:
        """Write the spans as JSON for the viewers of Chrome traces (chrome://tracing, Perfetto).

        Args:
            path: Where to.
            rank: Shown as a process: files of several ranks can be looked at together, each from its own zero.
        """
        write_trace(Path(path), self.spans(), rank)

    def _row(self, forward: int) -> list[_LayerMarks]:
        """Return the marks of a forward; those of the oldest one are used again for the next."""
        row = self._rows[forward % len(self._rows)]
        if forward > self._newest:
            self._newest = forward
            for marks in row:
                marks.reset()
        return row

    def _next_use(self, position: int, stream: Stream) -> _LayerMarks:
        """Return the marks for what is fetched now: this forward's, where it has not come to the layer yet."""
        self._streams[id(stream)] = stream
        return self._row(self._forward + (position <= self._last))[position]

    def _mark(self, point: _Point, position: int, stream: Stream) -> None:
        self._streams[id(stream)] = stream
        self._row(self._forward)[position].mark(point, stream)

    def _read(self) -> tuple[Span, ...]:
        assert self._machine is not None, "marks are read before they are given back"
        for stream in self._streams.values():
            stream.finish()
        first = max(0, self._forward - self._forwards + 1)
        rows = [(forward, self._rows[forward % len(self._rows)]) for forward in range(first, self._forward + 1)]
        origin = next((m.points[_Point.WAITING] for _, row in rows for m in row if _Point.WAITING in m.reached), None)
        if origin is None:
            return ()
        found = [span for forward, row in rows for span in _spans(self._machine, origin, forward, row)]
        zero = min((span.start for span in found), default=0.0)
        shifted = (Span(s.forward, s.position, s.kind, s.start - zero, s.end - zero) for s in found)
        return tuple(sorted(shifted, key=lambda span: (span.start, span.end)))

    @staticmethod
    def _made(machine: Machine, lanes: int, undo: ExitStack) -> _LayerMarks:
        def event() -> Event:
            made = machine.event(timed=True)
            undo.callback(made.close)
            return made

        return _LayerMarks([event() for _ in range(lanes)], {point: event() for point in _Point})


def _spans(machine: Machine, origin: Event, forward: int, row: Sequence[_LayerMarks]) -> Iterator[Span]:
    """Yield the spans of one forward, counted from a mark."""
    before: float | None = None
    for position, marks in enumerate(row):
        at = {point: machine.seconds(origin, marks.points[point]) for point in marks.reached}
        if marks.started and _Point.FETCHED in at:
            start = min(machine.seconds(origin, event) for event in marks.starts[: marks.started])
            yield Span(forward, position, Kind.FETCH, start, at[_Point.FETCHED])
        if _Point.COMPUTED not in at or _Point.COMPUTING not in at:
            before = None  # a forward that broke off, or left the layer out
            continue
        if before is not None:
            yield Span(forward, position, Kind.BETWEEN, before, at[_Point.WAITING])
        yield Span(forward, position, Kind.WAIT, at[_Point.WAITING], at[_Point.COMPUTING])
        yield Span(forward, position, Kind.COMPUTE, at[_Point.COMPUTING], at[_Point.COMPUTED])
        before = at[_Point.COMPUTED]
