"""Streams of the host keep the promises that those of a device keep, and prefetching needs no more."""

import ctypes
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from modelexpress.dwdp.host_machine import CallersStream, HostMachine, HostStream
from modelexpress.dwdp.prefetch import Observer, Prefetcher
from modelexpress.dwdp.streams import Copy, Event, Stream
from modelexpress.dwdp.undo import Undo
from modelexpress.errors import DeviceError


@pytest.fixture
def machine() -> HostMachine:
    return HostMachine()


@pytest.fixture
def streams() -> Iterator[tuple[HostStream, HostStream]]:
    both = HostStream(), HostStream()
    yield both
    for stream in both:
        stream.close()


class Held:
    """Work that goes on when it is told to."""

    def __init__(self, stream: HostStream) -> None:
        self._go = threading.Event()
        stream.enqueue(lambda: self._go.wait(20))

    def release(self) -> None:
        """Let it end."""
        self._go.set()


def test_a_stream_works_in_order_behind_the_back_of_its_caller(streams: tuple[HostStream, HostStream]) -> None:
    done: list[int] = []
    held = Held(streams[0])
    for number in range(50):
        streams[0].enqueue(partial(done.append, number))
    assert not done
    held.release()
    streams[0].finish()
    assert done == list(range(50))


def test_copies_are_done_when_the_stream_is_finished(streams: tuple[HostStream, HostStream]) -> None:
    source, target = ctypes.create_string_buffer(b"abcdef", 6), ctypes.create_string_buffer(6)
    start, end = ctypes.addressof(target), ctypes.addressof(source)
    streams[0].copy_all([(start, end, 3), (start + 3, end + 3, 3)])
    streams[0].finish()
    assert target.raw == b"abcdef"


def test_waiting_waits_for_the_mark_that_was_last_when_it_was_told_to(
    machine: HostMachine, streams: tuple[HostStream, HostStream]
) -> None:
    first, second = streams
    event, done = machine.event(), list[str]()
    first.record(event)
    second.wait(event)
    second.enqueue(lambda: done.append("after the first mark"))
    held = Held(first)
    first.record(event)  # of the second mark, nothing knows that waits already
    second.finish()
    assert done == ["after the first mark"]
    second.wait(event)
    second.enqueue(lambda: done.append("after the second mark"))
    assert done == ["after the first mark"]
    held.release()
    second.finish()
    assert done == ["after the first mark", "after the second mark"]


def test_nothing_waits_for_an_event_without_a_mark(
    machine: HostMachine, streams: tuple[HostStream, HostStream]
) -> None:
    streams[0].wait(machine.event())
    streams[0].finish()
    CallersStream().wait(machine.event())


def test_the_callers_thread_waits_itself(machine: HostMachine, streams: tuple[HostStream, HostStream]) -> None:
    event, done = machine.event(), list[int]()
    held = Held(streams[0])
    streams[0].enqueue(lambda: done.append(1))
    streams[0].record(event)
    held.release()
    caller = CallersStream()
    caller.wait(event)
    assert done == [1]
    caller.record(event)
    streams[1].wait(event)
    streams[1].finish()


def test_what_fails_in_a_stream_is_told_when_it_is_finished(streams: tuple[HostStream, HostStream]) -> None:
    streams[0].enqueue(lambda: 1 // 0)
    with pytest.raises(DeviceError, match="division"):
        streams[0].finish()


def test_a_machine_is_finished_when_all_streams_are_also_those_of_others(
    streams: tuple[HostStream, HostStream],
) -> None:
    compute, other = streams
    machine, done = HostMachine(compute=compute), list[int]()
    held = Held(other)
    for number in range(1000):
        other.enqueue(partial(done.append, number))
    compute.enqueue(held.release)
    machine.finish()
    assert len(done) == 1000


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_stream_fails_a_machine_waits_for_the_others_all_the_same(
    streams: tuple[HostStream, HostStream], failing: int
) -> None:
    machine, done = HostMachine(compute=streams[0]), list[int]()
    streams[failing].enqueue(lambda: 1 // 0)
    for stream in streams:
        stream.enqueue(lambda: done.append(1))
    with pytest.raises(DeviceError, match="division"):
        machine.finish()
    assert done == [1, 1]


def test_time_between_marks(machine: HostMachine, streams: tuple[HostStream, HostStream]) -> None:
    start, end = machine.event(timed=True), machine.event(timed=True)
    with pytest.raises(DeviceError, match="never recorded"):
        machine.seconds(start, end)
    streams[0].record(start)
    streams[0].record(end)
    streams[0].finish()
    assert machine.seconds(start, end) >= 0


def test_an_event_of_something_else_is_refused(streams: tuple[HostStream, HostStream]) -> None:
    class Other(Event):
        def close(self) -> None:
            """Do nothing."""

    with pytest.raises(DeviceError, match="Other is no event of host streams"):
        streams[0].wait(Other())


# ---- what is enqueued, and when


class Log(Observer):
    """Remembers what is enqueued."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def fetching(self, position: int, lane: Stream) -> None:
        self.said.append(f"fetch {position}")

    def computing(self, position: int, compute: Stream) -> None:
        self.said.append(f"compute {position}")

    def computed(self, position: int, compute: Stream) -> None:
        self.said.append(f"done {position}")


def _prefetcher(machine: HostMachine, layers: int, lanes: int = 1) -> tuple[Prefetcher, Log]:
    log = Log()
    nothing: list[Copy] = []
    return Prefetcher(machine, [[nothing] * lanes] * layers, log), log


def _forward(prefetcher: Prefetcher, layers: int) -> None:
    for position in range(layers):
        prefetcher.wait(position)
        prefetcher.release(position)


@pytest.mark.parametrize(
    ("layers", "first", "again"),
    [
        (1, "compute 0, done 0", "compute 0, done 0"),
        (2, "compute 0, done 0, compute 1, done 1", "compute 0, done 0, compute 1, done 1"),
        (
            3,
            "compute 0, done 0, fetch 2, compute 1, done 1, compute 2, done 2, fetch 0",
            "compute 0, done 0, fetch 2, compute 1, done 1, compute 2, done 2, fetch 0",
        ),
        (
            4,
            "compute 0, done 0, fetch 2, compute 1, done 1, fetch 3, compute 2, done 2, fetch 0, compute 3, done 3, "
            "fetch 1",
            "compute 0, done 0, fetch 2, compute 1, done 1, fetch 3, compute 2, done 2, fetch 0, compute 3, done 3, "
            "fetch 1",
        ),
    ],
)
def test_each_layer_is_fetched_once_a_forward_and_two_ahead(
    machine: HostMachine, layers: int, first: str, again: str
) -> None:
    prefetcher, log = _prefetcher(machine, layers)
    prefetcher.begin()
    assert log.said == [f"fetch {position}" for position in range(min(2, layers))]
    for expected in (first, again):
        log.said.clear()
        _forward(prefetcher, layers)
        assert ", ".join(log.said) == expected
        prefetcher.begin()  # all of it is there, or on its way
    prefetcher.close()
    prefetcher.close()


def test_a_layer_that_is_called_in_chunks_is_fetched_once(machine: HostMachine) -> None:
    prefetcher, log = _prefetcher(machine, 4, lanes=3)
    prefetcher.begin()
    for position in range(4):
        for _ in range(3):
            prefetcher.wait(position)
        prefetcher.release(position)
    assert [log.said.count(f"fetch {position}") for position in range(4)] == [6, 6, 3, 3]
    prefetcher.close()


@pytest.mark.parametrize("broken", range(5))
def test_after_a_forward_that_broke_off_the_next_one_fetches_what_it_needs(machine: HostMachine, broken: int) -> None:
    prefetcher, log = _prefetcher(machine, 5)
    prefetcher.begin()
    _forward(prefetcher, broken)
    prefetcher.wait(broken)
    log.said.clear()
    prefetcher.begin()
    fetched = {position: f"fetch {position}" in log.said for position in (0, 1)}
    assert fetched == {0: broken >= 1, 1: broken in (2, 3)}  # behind layer 3 comes layer 1
    _forward(prefetcher, 5)
    prefetcher.close()


def test_layers_that_are_skipped_are_no_harm(machine: HostMachine) -> None:
    prefetcher, log = _prefetcher(machine, 6)
    prefetcher.begin()
    for position in (1, 4, 5, 0):
        prefetcher.wait(position)
        said = [one for one in log.said if one in {f"fetch {at}" for at in range(position % 2, 6, 2)}]
        assert said[-1] == f"fetch {position}"
        prefetcher.release(position)
    prefetcher.close()


# ---- taking back


def test_steps_are_taken_back_in_reverse_and_all_of_them() -> None:
    taken: list[int] = []

    def failing(number: int) -> None:
        taken.append(number)
        raise DeviceError(f"step {number}")

    undo = Undo()
    for number in range(4):
        undo.add(partial(failing if number % 2 else taken.append, number))
    with pytest.raises(DeviceError, match="step 3") as caught:
        undo.run()
    assert taken == [3, 2, 1, 0]
    assert caught.value.__notes__ == ["while this was cleaned up: DeviceError: step 1"]
    undo.run()


def test_what_fails_on_the_way_back_is_noted_with_the_cause() -> None:
    undo, cause = Undo(), ValueError("first")
    undo.add(lambda: 1 // 0)
    undo.run(cause)
    assert "ZeroDivisionError" in cause.__notes__[0]
