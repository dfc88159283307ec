"""Machines whose copies spoil their destination first and come late, and that leave out a wait if they are told to.

What waits as it should cannot tell; what does not reads NaN.
"""

import ctypes
import random
import time
from collections.abc import Sequence

import torch

from modelexpress.dwdp.cuda_machine import CudaMachine, CudaStream, TorchStream
from modelexpress.dwdp.host_machine import CallersStream, HostMachine, HostStream
from modelexpress.dwdp.streams import Copy, Event, Machine, Stream
from modelexpress.dwdp.views import tensor_at

POISON = 0xFF
"""In every byte: not a number, in each floating-point type."""
LONGEST = 0.002
CYCLES_PER_SECOND = 1.8e9


def pause_device(chance: random.Random) -> None:
    """Keep torch's current stream busy for up to two milliseconds."""
    torch.cuda._sleep(int(chance.random() * LONGEST * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]


class _LateCudaStream(CudaStream):
    def __init__(self, device: int, chance: random.Random, *, waits: bool) -> None:
        super().__init__()
        self._device, self._chance, self._waits = device, chance, waits
        handle = self.handle.value or 0
        self._seen = torch.cuda.ExternalStream(handle, device=device)  # type: ignore[no-untyped-call]

    def wait(self, event: Event) -> None:
        if self._waits:
            super().wait(event)

    def copy_all(self, copies: Sequence[Copy]) -> None:
        with torch.cuda.stream(self._seen):
            for destination, _, nbytes in copies:
                tensor_at(destination, (nbytes,), (1,), torch.uint8, torch.device("cuda", self._device)).fill_(POISON)
            pause_device(self._chance)
        super().copy_all(copies)


class _HastyTorchStream(TorchStream):
    def wait(self, event: Event) -> None:
        """Do nothing."""


class _LateHostStream(HostStream):
    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def copy_all(self, copies: Sequence[Copy]) -> None:
        for destination, _, nbytes in copies:
            self.enqueue(lambda at=destination, size=nbytes: ctypes.memset(at, POISON, size))  # type: ignore[misc]
        self.enqueue(lambda: time.sleep(self._chance.random() * LONGEST))
        super().copy_all(copies)


class _HastyCallersStream(CallersStream):
    def wait(self, event: Event) -> None:
        """Do nothing."""


class LateCudaMachine(CudaMachine):
    """A CUDA device with late copies.

    Args:
        device: Its ordinal.
        dropped: The wait that is left out: "prefetched", "consumed", or none.
    """

    def __init__(self, device: int, dropped: str | None) -> None:
        super().__init__(device)
        self._dropped, self._number, self._chance = dropped, device, random.Random(device)

    def compute(self) -> Stream:
        usual = super().compute()
        return _HastyTorchStream(usual.handle.value or 0) if self._dropped == "prefetched" else usual  # type: ignore[attr-defined]

    def stream(self) -> Stream:
        with torch.cuda.device(self._number):
            return _LateCudaStream(self._number, self._chance, waits=self._dropped != "consumed")


class LateHostMachine(HostMachine):
    """The host with late copies; nothing is pending in the caller, so only the wait for what was fetched matters."""

    def __init__(self, dropped: str | None) -> None:
        super().__init__(compute=_HastyCallersStream() if dropped == "prefetched" else None)
        self._chance = random.Random(1)

    def stream(self) -> Stream:
        return _LateHostStream(self._chance)


def late_machine(device: torch.device, dropped: str | None) -> Machine:
    """Return a machine with late copies."""
    return LateHostMachine(dropped) if device.type == "cpu" else LateCudaMachine(device.index, dropped)
