"""The timeline: what is marked, for how many forwards, and what it comes to. Streams are threads of the host."""

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelexpress.dwdp.chart import charted
from modelexpress.dwdp.host_machine import HostEvent, HostMachine, HostStream
from modelexpress.dwdp.prefetch import Prefetcher
from modelexpress.dwdp.streams import Copy, Event, Stream
from modelexpress.dwdp.timeline import Timeline
from modelexpress.dwdp.timeline_spans import Kind, Span, summarised
from modelexpress.errors import ConfigurationError, DwdpError

LAYERS = 5
LANES = 2


class CountingEvent(HostEvent):
    """An event that knows whether it was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


class CountingMachine(HostMachine):
    """A machine that remembers its timed events."""

    def __init__(self, compute: Stream | None = None) -> None:
        super().__init__(compute=compute)
        self.timed: list[CountingEvent] = []

    def event(self, *, timed: bool = False) -> Event:
        if not timed:
            return super().event()
        self.timed.append(CountingEvent())
        return self.timed[-1]


@contextmanager
def prefetching(timeline: Timeline, machine: HostMachine | None = None, layers: int = LAYERS) -> Iterator[Prefetcher]:
    """A prefetcher whose layers copy a few bytes of ours."""
    memory = ctypes.create_string_buffer(layers * LANES * 2)
    base = ctypes.addressof(memory)

    def copies(number: int) -> Sequence[Copy]:
        return [(base + number * 2, base + number * 2 + 1, 1)]

    lanes = [[copies(layer * LANES + lane) for lane in range(LANES)] for layer in range(layers)]
    prefetcher = Prefetcher(machine or HostMachine(), lanes, timeline)
    try:
        yield prefetcher
    finally:
        prefetcher.close()


def forward(prefetcher: Prefetcher, positions: Sequence[int] = range(LAYERS), chunks: int = 1) -> None:
    prefetcher.begin()
    for position in positions:
        for _ in range(chunks):
            prefetcher.wait(position)
        prefetcher.release(position)


def kinds(spans: Sequence[Span], forward: int, position: int) -> list[Kind]:
    return [span.kind for span in spans if (span.forward, span.position) == (forward, position)]


def one(spans: Sequence[Span], forward: int, position: int, kind: Kind) -> Span:
    (found,) = (span for span in spans if (span.forward, span.position, span.kind) == (forward, position, kind))
    return found


@pytest.fixture
def compute() -> Iterator[HostStream]:
    """A stream that the model runs on behind our back, as on a device."""
    stream = HostStream("compute")
    yield stream
    stream.close()


def test_every_layer_of_every_forward_is_there(compute: HostStream) -> None:
    timeline = Timeline(forwards=3)
    with prefetching(timeline, HostMachine(compute=compute)) as prefetcher:
        for _ in range(3):
            forward(prefetcher)
        within = timeline.spans()
    assert timeline.spans() == within, "what was read while the group existed stays the same"
    for number in range(3):
        for position in range(LAYERS):
            between = [Kind.BETWEEN] if position else []
            assert sorted(kinds(within, number, position)) == sorted([*between, Kind.FETCH, Kind.WAIT, Kind.COMPUTE])
            fetch, wait = one(within, number, position, Kind.FETCH), one(within, number, position, Kind.WAIT)
            assert wait.end >= fetch.end, "computing begins when everything is there"
            assert one(within, number, position, Kind.COMPUTE).start == wait.end
            if position:
                before = one(within, number, position - 1, Kind.COMPUTE)
                gap = one(within, number, position, Kind.BETWEEN)
                assert (gap.start, gap.end) == (before.end, wait.start)
            if position >= 2:
                assert fetch.start >= one(within, number, position - 2, Kind.COMPUTE).end, "the slot was free then"
    assert min(span.start for span in within) == 0
    assert [span.start for span in within] == sorted(span.start for span in within)


def test_marks_are_made_beforehand_and_the_last_forwards_stay() -> None:
    machine = CountingMachine()
    timeline = Timeline(forwards=2)
    with prefetching(timeline, machine) as prefetcher:
        made = len(machine.timed)
        for _ in range(7):
            forward(prefetcher)
    assert len(machine.timed) == made == 3 * LAYERS * (LANES + 4)
    assert {span.forward for span in timeline.spans()} == {5, 6}
    assert all(event.closed for event in machine.timed)


def test_chunks_wait_once() -> None:
    timeline = Timeline()
    with prefetching(timeline) as prefetcher:
        forward(prefetcher, chunks=3)
        forward(prefetcher, chunks=2)
    assert {span.forward for span in timeline.spans()} == {0, 1}
    one(timeline.spans(), 1, 2, Kind.WAIT)


def test_a_forward_that_breaks_off_is_followed_by_a_right_one() -> None:
    timeline = Timeline()
    with prefetching(timeline) as prefetcher:
        forward(prefetcher, (0, 1))
        prefetcher.wait(2)  # and its layer fails
        forward(prefetcher)
    spans = timeline.spans()
    assert kinds(spans, 0, 1).count(Kind.COMPUTE) == 1
    assert Kind.COMPUTE not in kinds(spans, 0, 2)
    for position in range(LAYERS):
        assert {Kind.FETCH, Kind.COMPUTE} <= set(kinds(spans, 1, position))


def test_layers_that_stay_in_their_slots_are_fetched_once() -> None:
    timeline = Timeline()
    with prefetching(timeline, layers=1) as prefetcher:
        for _ in range(3):
            forward(prefetcher, (0,))
    assert [span.forward for span in timeline.spans() if span.kind is Kind.COMPUTE] == [0, 1, 2]
    assert [span.forward for span in timeline.spans() if span.kind is Kind.FETCH] == [0]


def test_another_group_begins_another_timeline() -> None:
    timeline = Timeline()
    for _ in range(2):
        with prefetching(timeline) as prefetcher:
            forward(prefetcher)
    assert {span.forward for span in timeline.spans()} == {0}


def test_an_empty_timeline_says_so(tmp_path: Path) -> None:
    timeline = Timeline()
    assert timeline.spans() == ()
    with pytest.raises(DwdpError, match="run a forward"):
        timeline.summary()
    with pytest.raises(DwdpError, match="run a forward"):
        timeline.draw(tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
    with pytest.raises(DwdpError, match="at least 1"):
        Timeline(forwards=0)


def test_the_summary_is_the_mean_of_forwards() -> None:
    spans = [
        Span(0, 0, Kind.FETCH, 0.0, 4.0),
        Span(0, 0, Kind.WAIT, 2.0, 4.0),
        Span(0, 0, Kind.COMPUTE, 4.0, 9.0),
        Span(1, 0, Kind.FETCH, 9.0, 15.0),
        Span(1, 0, Kind.WAIT, 15.0, 15.0),
        Span(1, 0, Kind.COMPUTE, 15.0, 22.0),
        Span(1, 1, Kind.BETWEEN, 22.0, 23.0),
        Span(1, 1, Kind.WAIT, 23.0, 23.0),
        Span(1, 1, Kind.COMPUTE, 23.0, 24.0),
        Span(1, 2, Kind.FETCH, 22.0, 24.0),
    ]
    summary = summarised(spans)
    first, second = summary.layers
    assert (first.compute, first.fetch, first.wait, first.between) == (6.0, 5.0, 1.0, 0.0)
    assert (second.compute, second.fetch, second.wait, second.between) == (1.0, 0.0, 0.0, 1.0)
    assert (summary.fetch, summary.wait, summary.overlap) == (5.0, 1.0, 0.8)
    assert json.loads(json.dumps(summary.fields()))["overlap"] == 0.8


def test_chart_and_trace(tmp_path: Path) -> None:
    timeline = Timeline(forwards=1)
    with prefetching(timeline) as prefetcher:
        forward(prefetcher)
    timeline.draw(tmp_path / "a.svg")
    timeline.draw(tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text(), "the same spans give the same file"
    assert "of fetching is hidden" in drawn
    timeline.trace(tmp_path / "trace.json", rank=3)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(timeline.spans())
    assert all(event["pid"] == 3 and event["dur"] >= 0 for event in spans)
    assert {event["cat"] for event in spans} == {"fetch", "wait", "compute", "between"}


def test_without_matplotlib_a_chart_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"modelexpress\[charts\]"), charted(tmp_path / "a.svg", (1, 1), "a"):
        pass
