"""Virtual memory management: ranges of addresses, and physical memory that is mapped into them.

    address = vmm.reserve(nbytes)          physical = vmm.create(nbytes)      or vmm.import_physical(descriptor, nbytes)
    vmm.map(address, nbytes, physical)     vmm.release(physical)              the mapping keeps the memory
    vmm.allow(address, nbytes)             ... the memory is used ...
    vmm.unmap(address, nbytes)             vmm.free(address, nbytes)

What any implementation must do is checked by the suite in tests/conformance/vmm.py.
"""

from abc import ABC, abstractmethod
from typing import NewType

Physical = NewType("Physical", int)
"""Names physical memory within the process that created or imported it."""


class Vmm(ABC):
    """One kind of memory that can be mapped at chosen addresses and shared between processes of a host.

    Addresses and sizes are multiples of `granularity`. Every method raises DeviceError where the driver, or for host
    memory the kernel, refuses.
    """

    @property
    @abstractmethod
    def granularity(self) -> int:
        """Bytes of which every size and address is a multiple."""

    @abstractmethod
    def reserve(self, nbytes: int) -> int:
        """Return the first of `nbytes` of addresses that nothing else will get; no memory is behind them."""

    @abstractmethod
    def free(self, address: int, nbytes: int) -> None:
        """Give a reserved range back as a whole; nothing is mapped in it."""

    @abstractmethod
    def create(self, nbytes: int) -> Physical:
        """Return physical memory that can be exported."""

    @abstractmethod
    def release(self, physical: Physical) -> None:
        """Let physical memory go; it lives on until it is unmapped everywhere, and every descriptor is closed."""

    @abstractmethod
    def map(self, address: int, nbytes: int, physical: Physical) -> None:
        """Put physical memory of `nbytes`, the whole of it, at an address in a reserved range.

        The same memory may be mapped at several addresses. It cannot be used before `allow`.
        """

    @abstractmethod
    def unmap(self, address: int, nbytes: int) -> None:
        """Take one mapping away; its addresses stay reserved. Nothing may be using it."""

    @abstractmethod
    def allow(self, address: int, nbytes: int) -> None:
        """Let a range be read and written; it is mapped throughout, by any number of mappings."""

    @abstractmethod
    def export(self, physical: Physical) -> int:
        """Return a file descriptor of physical memory, for another process to import; the caller closes it."""

    @abstractmethod
    def import_physical(self, descriptor: int, nbytes: int) -> Physical:
        """Return physical memory of `nbytes` that another process exported; the descriptor may be closed then."""

    def rounded(self, nbytes: int) -> int:
        """Return `nbytes` rounded up to the next multiple of the granularity."""
        return -(-nbytes // self.granularity) * self.granularity
