"""The order of copies of several lanes into one slot."""

import ctypes
import threading
from collections.abc import Sequence

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


def _half(slot: "ctypes.Array[ctypes.c_char]", source: "ctypes.Array[ctypes.c_char]", lane: int) -> list[Copy]:
    size = len(source) // 2
    return [(ctypes.addressof(slot) + lane * size, ctypes.addressof(source) + lane * size, size)]
