"""Tensors whose values a failed load must not change, because what runs after it does not fill them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored_on_error(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Give tensors the values back that they had before the block, where the block raises.

    Args:
        tensors: Copies of them are kept as long as the block runs, where they are.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:  # also an interrupt: what follows computes with these values
        with torch.no_grad():
            for tensor, values in kept:
                tensor.copy_(values)
        raise
