"""Parting an engine's small tensors from what is offered of them: its post-load step writes into them."""

# mypy: untyped-calls-exclude=torch

from collections import defaultdict
from collections.abc import Iterable

import torch

SMALL_BYTES = 1 << 20
"""What an engine's post-load step writes into has no more bytes than this: scales, most of all."""


def part_small(tensors: Iterable[torch.Tensor]) -> None:
    """Give small tensors in host memory other memory with the same values, storage by storage.

    They stay the same objects, and views that share a storage go on sharing it. Whoever has what they were made of, as
    a source does after `settle`, keeps it as it is.

    Args:
        tensors: Some of a model; each storage is copied with all of its tensors that are among them.
    """
    groups: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.device.type == "cpu" and 0 < storage.nbytes() <= SMALL_BYTES:
            groups[storage.data_ptr()][id(tensor)] = tensor
    for group in groups.values():
        members = list(group.values())
        fresh = members[0].untyped_storage().clone()
        for tensor in members:
            other = torch.empty(0, dtype=tensor.dtype, device="cpu")
            tensor.data = other.set_(fresh, int(tensor.storage_offset()), tensor.shape, tensor.stride())
