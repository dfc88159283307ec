"""One stacked weight of one layer in memory: a range of addresses in which the full tensor appears."""

import os
from collections.abc import Sequence
from contextlib import ExitStack

from modelexpress.dwdp.layout import WeightLayout
from modelexpress.memory import Vmm
from modelexpress.memory.vmm import Physical


class Mapped:
    """Physical memory side by side in a range of addresses that may be used as a whole.

    Args:
        vmm: Maps it.
        parts: Memory and size of each part, in order.

    Raises:
        DeviceError: There are no addresses, or the driver refused.
    """

    def __init__(self, vmm: Vmm, parts: Sequence[tuple[Physical, int]]) -> None:
        self.nbytes = sum(nbytes for _, nbytes in parts)
        with ExitStack() as undo:
            self.address = vmm.reserve(self.nbytes)
            undo.callback(vmm.free, self.address, self.nbytes)
            end = self.address
            for physical, nbytes in parts:
                vmm.map(end, nbytes, physical)
                undo.callback(vmm.unmap, end, nbytes)
                end += nbytes
            vmm.allow(self.address, self.nbytes)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Unmap everything and give the addresses back; nothing may be using them. Closing twice is allowed.

        Raises:
            DeviceError: The driver refused.
        """
        self._undo.close()


class WeightBuffer:
    """The full tensor of one weight: own experts in memory that peers can map, the others in pages of a slot.

    Args:
        vmm: Makes and maps memory.
        layout: What lies where.
        pages: The slot's pages for this weight, those before own memory first.

    Raises:
        DeviceError: There is no memory, or there are no addresses.
    """

    def __init__(self, vmm: Vmm, layout: WeightLayout, pages: Sequence[Physical]) -> None:
        self.layout = layout
        self._vmm = vmm
        before = layout.pre_bytes // layout.page_bytes
        page = layout.page_bytes
        with ExitStack() as undo:
            self._own = vmm.create(layout.own_bytes)
            undo.callback(vmm.release, self._own)
            parts = [(physical, page) for physical in pages]
            self._mapped = Mapped(vmm, [*parts[:before], (self._own, layout.own_bytes), *parts[before:]])
            undo.callback(self._mapped.close)
            self._undo = undo.pop_all()

    @property
    def address(self) -> int:
        """Of the full tensor's first byte."""
        return self._mapped.address + self.layout.padding

    def export(self) -> int:
        """Return a descriptor of own memory, for a peer; the caller closes it."""
        return self._vmm.export(self._own)

    def close(self) -> None:
        """Give own memory and addresses back. Peers that mapped the memory keep it. Closing twice is allowed."""
        self._undo.close()


class PeerExperts:
    """A peer's own memory of one weight, mapped here.

    Args:
        vmm: Maps it.
        layout: The weight's, on that peer.
        descriptor: What the peer exported; it is closed.

    Raises:
        DeviceError: It is not memory of that size.
    """

    def __init__(self, vmm: Vmm, layout: WeightLayout, descriptor: int) -> None:
        self._layout = layout
        try:
            physical = vmm.import_physical(descriptor, layout.own_bytes)
        finally:
            os.close(descriptor)
        try:
            self._mapped = Mapped(vmm, [(physical, layout.own_bytes)])
        finally:
            vmm.release(physical)

    def at(self, offset: int) -> int:
        """Return the address of a byte of the full tensor, which the peer holds."""
        return self._mapped.address + offset - self._layout.own_start

    def close(self) -> None:
        """Unmap it; closing twice is allowed."""
        self._mapped.close()
