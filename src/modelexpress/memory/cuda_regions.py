"""Device memory as regions: the allocations under tensors, found without moving anything."""

from collections.abc import Iterable

from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.region import Region


def allocations_under(ranges: Iterable[tuple[int, int]]) -> list[Region]:
    """Return the allocations that hold ranges of device memory, each once, ordered by address.

    Framework allocators hand out parts of large allocations: a model of thousands of tensors lies in tens of them.

    Args:
        ranges: Address and bytes of each tensor; none is empty.

    Raises:
        DeviceError: An address belongs to no device.
    """
    found: list[Region] = []
    end = 0
    for address, nbytes in sorted(ranges):
        # One range may reach over several allocations: expandable segments map them side by side.
        while end < address + nbytes:
            base, size = driver().allocation(max(address, end))
            found.append(Region(base, size, device=driver().device_of(base)))
            end = base + size
    return found
