"""Pages of the two slots: memory that all layers of a slot share, and that holds what a rank fetches."""

from collections.abc import Sequence
from contextlib import ExitStack

from modelexpress.memory import Vmm
from modelexpress.memory.vmm import Physical

SLOTS = 2
"""While a layer is computed from one, the next layer's experts arrive in the other."""


def slot_of(position: int) -> int:
    """Return the slot of a layer, by its place among the layers with experts."""
    return position % SLOTS


class PagePool:
    """Physical memory of the slots, mapped into the range of every weight that uses it; never exported.

    Args:
        vmm: Makes the memory.
        page_bytes: Size of a page.
        pages: Of each layer, in order; a slot is as large as its largest layer.

    Raises:
        DeviceError: The memory is not there.
    """

    def __init__(self, vmm: Vmm, page_bytes: int, pages: Sequence[int]) -> None:
        self.page_bytes = page_bytes
        self._vmm = vmm
        self._slots: list[list[Physical]] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for slot in range(SLOTS):
                self._slots.append([])
                for _ in range(max(pages[slot::SLOTS], default=0)):
                    self._slots[slot].append(vmm.create(page_bytes))
            undo.pop_all()

    def take(self, slot: int, first: int, count: int) -> list[Physical]:
        """Return pages of a slot by their place in it; several layers get the same ones."""
        return self._slots[slot][first : first + count]

    def close(self) -> None:
        """Let the memory go, when it is not mapped any more. Closing twice is allowed.

        Raises:
            DeviceError: The driver refused.
        """
        for pages in self._slots:
            while pages:
                self._vmm.release(pages.pop())
