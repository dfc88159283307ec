"""Device memory as regions: the allocations under tensors, found without moving anything."""

from collections.abc import Iterable, Iterator

from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.region import Region


def regions_under(ranges: Iterable[tuple[int, int]]) -> list[Region]:
    """Return the regions of device memory that hold some ranges, each once, ordered by address.

    Framework allocators hand out parts of large allocations: a model of thousands of tensors lies in tens of them.
    An allocation of cudaMalloc is a region of its own; neighbours made by virtual memory management, as expandable
    segments are, are one region together, because they can be mapped side by side elsewhere, too.

    Args:
        ranges: Address and bytes of each tensor; none is empty.

    Raises:
        DeviceError: An address belongs to no device.
    """
    regions: list[Region] = []
    end, joinable = 0, False
    for base, nbytes, device, is_virtual in _allocations(ranges):
        if regions and joinable and is_virtual and base == end and regions[-1].device == device:
            last = regions.pop()
            regions.append(Region(last.address, last.nbytes + nbytes, device=device))
        else:
            regions.append(Region(base, nbytes, device=device))
        end, joinable = base + nbytes, is_virtual
    return regions


def _allocations(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int | None, bool]]:
    """Yield address, bytes, device and kind of every allocation under the ranges, by address."""
    end = 0
    for address, nbytes in sorted(ranges):
        while end < address + nbytes:
            base, size = driver().allocation(max(address, end))
            yield base, size, driver().device_of(base), not driver().is_ipc_capable(base)
            end = base + size
