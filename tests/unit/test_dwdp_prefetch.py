"""The order of copies of several lanes into one slot."""

import ctypes
import threading
from collections.abc import Sequence
from functools import partial

import pytest

from modelexpress.dwdp.host_machine import HostMachine, HostStream
from modelexpress.dwdp.prefetch import Prefetcher
from modelexpress.dwdp.streams import Copy, Stream

LAYER_BYTES = (100, 100, 200)


class Gated(HostStream):
    """A stream whose copies wait for a gate, if they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.held = False

    def copy_all(self, copies: Sequence[Copy]) -> None:
        if self.held:
            self.enqueue(self.gate.wait)
        super().copy_all(copies)


class GatedMachine(HostMachine):
    """Notes its streams."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Gated] = []

    def stream(self) -> Stream:
        self.streams.append(Gated())
        return self.streams[-1]


class TurningMachine(HostMachine):
    """Computes on one of two streams."""

    def __init__(self) -> None:
        super().__init__()
        self.both = HostStream("first"), HostStream("second")
        self.turn = 0

    def compute(self) -> Stream:
        return self.both[self.turn]


def test_a_fetch_that_was_given_up_does_not_overtake_the_one_that_follows() -> None:
    slots = [(ctypes.c_char * max(LAYER_BYTES))() for _ in range(2)]
    sources = [(ctypes.c_char * size)(*[bytes([number + 1])] * size) for number, size in enumerate(LAYER_BYTES)]
    layers = [[_half(slots[number % 2], source, lane) for lane in range(2)] for number, source in enumerate(sources)]
    machine = GatedMachine()
    prefetcher = Prefetcher(machine, layers)
    prefetcher.begin()
    prefetcher.wait(0)
    first, second = machine.streams[:2]
    first.held = True
    prefetcher.release(0)  # the fetch of layer 2 is on its way, and its first lane is late
    first.held = False
    waited: list[bytes] = []

    def next_forward() -> None:
        prefetcher.wait(0)
        waited.append(slots[0].raw[: LAYER_BYTES[0]])

    forward = threading.Thread(target=next_forward)
    forward.start()
    second_done = threading.Event()
    while not first.gate.is_set():
        second.enqueue(second_done.set)
        second_done.wait(0.2)  # without an order between lanes, the second one is through by then
        first.gate.set()
    forward.join(20)
    prefetcher.close()
    assert waited == [sources[0].raw]


@pytest.mark.parametrize("released_by", [0, 1])
def test_a_layer_that_two_streams_compute_is_needed_until_both_have(released_by: int) -> None:
    slot, sources = (
        ctypes.create_string_buffer(4),
        [ctypes.create_string_buffer(text, 4) for text in (b"aaaa", b"cccc")],
    )
    first, third = ([[(ctypes.addressof(slot), ctypes.addressof(source), 4)]] for source in sources)
    machine, gate, read = TurningMachine(), threading.Event(), list[bytes]()
    prefetcher = Prefetcher(machine, [first, [[]], third])
    prefetcher.begin()
    for machine.turn in (0, 1):
        prefetcher.wait(0)
        if machine.turn != released_by:
            machine.both[machine.turn].enqueue(partial(gate.wait, 20))
        machine.both[machine.turn].enqueue(lambda: read.append(slot.raw))
    machine.turn = released_by
    prefetcher.release(0)
    # The other one has not read it: nothing overtakes it, whether or not it gets the time to.
    threading.Timer(0.1, gate.set).start()
    machine.turn = 1 - released_by
    prefetcher.wait(2)
    for stream in machine.both:
        stream.finish()
    assert read == [b"aaaa"] * 2
    assert slot.raw == b"cccc"
    prefetcher.close()
    for stream in machine.both:
        stream.close()


def _half(slot: "ctypes.Array[ctypes.c_char]", source: "ctypes.Array[ctypes.c_char]", lane: int) -> list[Copy]:
    size = len(source) // 2
    return [(ctypes.addressof(slot) + lane * size, ctypes.addressof(source) + lane * size, size)]
