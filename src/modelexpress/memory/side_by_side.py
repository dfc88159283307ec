"""Physical memory of other processes, mapped side by side: one range of addresses that fills from its beginning."""

import os
from collections import deque
from collections.abc import Sequence

from modelexpress.memory.vmm import Vmm

GROUP_BYTES = 512 << 20
"""Bytes that become usable together: letting a range be used costs a call of its own."""


class SideBySide:
    """Allocations in one reserved range, mapped step by step, so that the first can be read while the last is mapped.

    One thread at a time calls `advance` and `close`; any may look at `address` and `ready`.

    Args:
        vmm: Maps them.
        parts: Descriptor and bytes of each allocation, in order; the descriptors are owned from now on.

    Raises:
        DeviceError: There are no addresses for them; the descriptors are closed.
    """

    def __init__(self, vmm: Vmm, parts: Sequence[tuple[int, int]]) -> None:
        self._vmm = vmm
        self._waiting = deque(parts)
        self._mapped: list[tuple[int, int]] = []
        self.nbytes = sum(nbytes for _, nbytes in parts)
        self.ready = 0
        """Bytes from the beginning that can be used."""
        self.address = 0
        try:
            self.address = vmm.reserve(self.nbytes)
        finally:
            if not self.address:
                self._forget_waiting()

    def advance(self) -> None:
        """Map the next allocations; `ready` is larger then, until it is `nbytes`.

        Raises:
            DeviceError: One cannot be mapped.
        """
        end = self.ready
        while self._waiting and end - self.ready < GROUP_BYTES:
            descriptor, nbytes = self._waiting.popleft()
            try:
                physical = self._vmm.import_physical(descriptor, nbytes)
            finally:
                os.close(descriptor)
            try:
                self._vmm.map(self.address + end, nbytes, physical)
            finally:
                self._vmm.release(physical)
            self._mapped.append((self.address + end, nbytes))
            end += nbytes
        if end > self.ready:
            self._vmm.allow(self.address + self.ready, end - self.ready)
            self.ready = end

    def close(self) -> None:
        """Unmap what is mapped and give the addresses back; nothing may be using them. Closing twice is allowed.

        Raises:
            DeviceError: The driver refused.
        """
        self._forget_waiting()
        while self._mapped:
            self._vmm.unmap(*self._mapped.pop())
        if self.address:
            address, self.address = self.address, 0
            self._vmm.free(address, self.nbytes)

    def _forget_waiting(self) -> None:
        while self._waiting:
            os.close(self._waiting.popleft()[0])
