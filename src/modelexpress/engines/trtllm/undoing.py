"""Undoing a transfer that failed, so that the engine's own loader finds a model as it was made.

Checkpoints do not hold all of a model, and what they hold has other names than the model's tensors: which of them the
engine's loader overwrites, nobody can tell from here. So everything that a transfer may write is copied before it.
Loaders run before there is a cache of keys and values, so that the device has room for it most of the time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from modelexpress.errors import LoadError, ModelExpressError, PartialModel
from modelexpress.memory import aligned
from modelexpress.weights.catalog import copyable

_LEFT_FREE = 1 << 30
"""Bytes of a device that copies leave to others, the transfer among them."""

_Copies = list[tuple[torch.Tensor, torch.Tensor]]


@contextmanager
def undone_on_error(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Give tensors the values back that they had before the block, where the block raises after it has written.

    Copies of all of them are kept meanwhile, each on its tensor's device. Where a device has no room for them, none
    are.

    Args:
        tensors: What the block may write into: `modelexpress.load`, which raises PartialModel if it has.

    Raises:
        LoadError: The block raised PartialModel; the tensors are as before.
        PartialModel: The block has written, or may have, and there are no copies.
    """
    copies = _copies_of(list(tensors))
    try:
        yield
    except PartialModel as error:
        if copies is None:
            raise _not_undone(error) from error
        _put_back(copies)
        raise LoadError(f"{error}; they have their values back", error.causes) from error
    except ModelExpressError:
        raise  # nothing was written
    except Exception as error:  # whatever it is, something may have been written before
        if copies is None:
            raise _not_undone(error) from error
        _put_back(copies)
        raise
    finally:
        _release(copies)


def _not_undone(error: Exception) -> PartialModel:
    return PartialModel(
        "the transfer failed after weights of this model had been overwritten, the device has no room for copies of "
        "them, and a checkpoint may not hold them all: start this replica again, with MX_P2P_METADATA=0 if it shall "
        f"read the checkpoint: {error}",
        [error],
    )


def _copies_of(tensors: list[torch.Tensor]) -> _Copies | None:
    """Return pairs of a tensor and a copy of it, which share one allocation for each device; None without room."""
    blocks: dict[torch.device, torch.Tensor] = {}
    for device in {tensor.device for tensor in tensors}:
        nbytes = sum(aligned(tensor.nbytes) for tensor in tensors if tensor.device == device)
        if nbytes > _room(device):
            return None
        try:
            blocks[device] = torch.empty(nbytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            return None  # others have taken it meanwhile
    copies = []
    with torch.no_grad():
        for tensor in tensors:
            block, values = blocks[tensor.device], copyable(tensor)
            copy = block[: tensor.nbytes].view(values.dtype).view(values.shape)
            copies.append((tensor, copy.copy_(values)))
            blocks[tensor.device] = block[aligned(tensor.nbytes) :]
    return copies


def _room(device: torch.device) -> float:
    """Return the bytes of a device that copies may take; of host memory there is more than of any other."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return free - _LEFT_FREE


def _put_back(copies: _Copies) -> None:
    with torch.no_grad():
        for tensor, copy in copies:
            copyable(tensor).copy_(copy)


def _release(copies: _Copies | None) -> None:
    """Give the memory of copies back to the device: the engine counts what is free there soon."""
    if not copies:
        return
    on_device = any(copy.is_cuda for _, copy in copies)
    copies.clear()
    if on_device:
        torch.cuda.empty_cache()
