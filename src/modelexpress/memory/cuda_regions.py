"""Device memory as regions: the allocations under tensors, found without moving anything."""

from collections.abc import Iterable, Iterator

from modelexpress.memory.cuda_driver import Allocation, driver
from modelexpress.memory.region import Region


def regions_under(ranges: Iterable[tuple[int, int]]) -> list[Region]:
    """Return the regions of device memory that hold some ranges, each once, ordered by address.

    Framework allocators hand out parts of large allocations: a model of thousands of tensors lies in tens of them.
    An allocation of cudaMalloc is a region of its own; neighbours made by virtual memory management, as expandable
    segments and arenas are, are one region together, because they can be mapped side by side elsewhere, too. The
    driver is asked once for each allocation.

    Args:
        ranges: Address and bytes of each tensor; none is empty.

    Raises:
        DeviceError: An address belongs to no device.
    """
    regions: list[Region] = []
    group: list[Allocation] = []
    for found in _allocations(ranges):
        if group and not _joins(group[-1], found):
            regions.append(_region(group))
            group.clear()
        group.append(found)
    return [*regions, _region(group)] if group else regions


def _allocations(ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
    """Yield every allocation under the ranges, by address."""
    end = 0
    for address, nbytes in sorted(ranges):
        while end < address + nbytes:
            found = driver().allocation(max(address, end))
            yield found
            end = found.address + found.nbytes


def _joins(left: Allocation, right: Allocation) -> bool:
    virtual = not (left.is_ipc_capable or right.is_ipc_capable)
    return virtual and left.address + left.nbytes == right.address and left.device == right.device


def _region(group: list[Allocation]) -> Region:
    return Region(group[0].address, sum(found.nbytes for found in group), device=group[0].device)
