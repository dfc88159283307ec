"""A host machine that does its worst within what streams promise: and, if it is told to, a little beyond."""

import ctypes
import random
import time
from collections.abc import Sequence
from enum import Enum
from functools import partial

from modelexpress.dwdp.host_machine import HostMachine, HostStream
from modelexpress.dwdp.prefetch import Observer
from modelexpress.dwdp.streams import Copy, Event, Stream
from modelexpress.memory import Vmm

POISON = 0xFF
"""Of bytes: not a number, in each of the formats in use."""
LONGEST_DELAY = 0.004


class Missing(Enum):
    """What keeps the order, and is left out on purpose."""

    NOTHING = "nothing"
    PREFETCHED = "computation does not wait for what was fetched"
    PREFETCHED_AT_THE_BOUNDARY = "the first layer of a forward does not wait for what was fetched"
    JOINED = "what says that all was fetched does not wait for the lanes"
    CONSUMED = "fetching does not wait for computation"
    CONSUMED_AT_THE_BOUNDARY = "what the last layers of a forward fetch for the next one does not wait for them"
    RECORDED = "computation does not say that it is done with a layer"


class Hostile(HostMachine, Observer):
    """Computes and copies in threads, late; the bytes that a copy will overwrite are poison from the moment it may.

    Args:
        vmm: Makes memory.
        lanes: Streams that copy; the one that is asked for next joins them.
        layers: Layers with experts.
        seed: Of the delays.
        missing: What does not happen.
    """

    def __init__(self, vmm: Vmm, lanes: int, layers: int, seed: int, missing: Missing = Missing.NOTHING) -> None:
        self._random = random.Random(seed)
        self._lanes, self._layers, self._missing = lanes, layers, missing
        self._made = 0
        self._computed = -1
        self.computing_stream = _Computing(self)
        super().__init__(vmm, self.computing_stream)

    def stream(self) -> Stream:
        self._made += 1
        return _Lane(self) if self._made <= self._lanes else _Joint(self)

    def computed(self, position: int, compute: Stream) -> None:
        self._computed = position

    def delay(self) -> None:
        """Take a while."""
        time.sleep(self._random.random() * LONGEST_DELAY)

    @property
    def drops_prefetched(self) -> bool:
        """Whether the computation that is enqueued now does not wait."""
        crossing = self._missing is Missing.PREFETCHED_AT_THE_BOUNDARY and self._computed == self._layers - 1
        return crossing or self._missing is Missing.PREFETCHED

    @property
    def drops_consumed(self) -> bool:
        """Whether the copies that are enqueued now do not wait."""
        crossing = self._missing is Missing.CONSUMED_AT_THE_BOUNDARY and self._computed >= self._layers - 2
        return crossing or self._missing is Missing.CONSUMED

    def drops(self, what: Missing) -> bool:
        """Return whether something does not happen."""
        return self._missing is what


class _Computing(HostStream):
    def __init__(self, machine: Hostile) -> None:
        super().__init__("compute")
        self._machine = machine

    def wait(self, event: Event) -> None:
        if not self._machine.drops_prefetched:
            super().wait(event)

    def record(self, event: Event) -> None:
        if not self._machine.drops(Missing.RECORDED):
            super().record(event)


class _Lane(HostStream):
    def __init__(self, machine: Hostile) -> None:
        super().__init__()
        self._machine = machine

    def wait(self, event: Event) -> None:
        if not self._machine.drops_consumed:
            super().wait(event)

    def copy_all(self, copies: Sequence[Copy]) -> None:
        for destination, _, nbytes in copies:
            self.enqueue(partial(ctypes.memset, destination, POISON, nbytes))
        self.enqueue(self._machine.delay)
        super().copy_all(copies)


class _Joint(HostStream):
    def __init__(self, machine: Hostile) -> None:
        super().__init__()
        self._machine = machine

    def wait(self, event: Event) -> None:
        if not self._machine.drops(Missing.JOINED):
            super().wait(event)
