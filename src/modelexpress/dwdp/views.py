"""Tensors of torch over memory that torch did not allocate."""

from collections.abc import Sequence
from typing import Any

import torch

from modelexpress.memory.region import memory_view


def tensor_at(
    address: int, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return a tensor over memory at an address; its owner keeps the memory while the tensor is used.

    Args:
        address: Of the first element.
        shape: Of the tensor, in elements.
        stride: Of the tensor, in elements.
        dtype: Of the elements.
        device: Whose memory it is.
    """
    reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    nbytes = reach * dtype.itemsize
    if device.type == "cpu":
        flat = torch.frombuffer(memory_view(address, nbytes), dtype=torch.uint8)
    else:
        flat = torch.as_tensor(_DeviceBytes(address, nbytes), device=device)
    return flat.view(dtype).as_strided(tuple(shape), tuple(stride))


class _DeviceBytes:
    """Bytes of a CUDA device, as other libraries hand them to torch (CUDA Array Interface, version 3)."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
