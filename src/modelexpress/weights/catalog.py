"""The catalogue of a model: every tensor of a module or mapping, and which of them are the same memory."""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch

from modelexpress.errors import UnsupportedModel
from modelexpress.transfer import manifest

Model = torch.nn.Module | MutableMapping[str, torch.Tensor]
"""What can be published and loaded: a module, or tensors by name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model.

    Args:
        name: As in `state_dict`.
        tensor: The parameter or buffer itself.
        memory: Tensors of one model with the same number are one and the same memory (tied weights).
        persistent: False for buffers that a checkpoint leaves out.
        dtype: Torch's name of the dtype without its package.
        shape: Sizes in elements.
        nbytes: Bytes of the elements.
        is_meta: Whether the tensor has no memory yet.
    """

    name: str
    tensor: torch.Tensor
    memory: int
    persistent: bool
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    is_meta: bool


def catalogue(model: Model) -> tuple[Entry, ...]:
    """List every parameter and buffer of a module, or every tensor of a mapping, under all of its names.

    Raises:
        UnsupportedModel: A tensor has no plain strided memory: sparse, quantised by torch's own scheme, or a
            wrapper around other tensors.
    """
    memories: dict[object, int] = {}
    return tuple(
        _entry(name, tensor, memories.setdefault(_memory_key(_plain(name, tensor)), len(memories)), persistent)
        for name, tensor, persistent in _tensors(model)
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill one range of memory without gaps or overlap, in any order."""
    if tensor.is_conj() or tensor.is_neg():
        return False
    return tensor.is_contiguous() or manifest.is_dense(tensor.shape, tensor.stride())


def copyable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that torch can copy: it has no copy kernel for the dtypes below one byte."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _tensors(model: Model) -> Iterator[tuple[str, torch.Tensor, bool]]:
    if isinstance(model, Mapping):
        for name, tensor in model.items():
            yield name, tensor, True
        return
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, True
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None:
                full = f"{prefix}.{name}" if prefix else name
                yield full, buffer, name not in module._non_persistent_buffers_set


def _entry(name: str, tensor: torch.Tensor, memory: int, persistent: bool) -> Entry:
    dtype = str(tensor.dtype).removeprefix("torch.")
    nbytes = tensor.numel() * tensor.element_size()
    return Entry(name, tensor, memory, persistent, dtype, tuple(tensor.shape), nbytes, tensor.is_meta)


def _memory_key(tensor: torch.Tensor) -> object:
    """Return what is equal for tensors that are the same elements of the same memory."""
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    layout = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.data_ptr(), layout)


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedModel(f"the tensor name {name!r} is no valid text: rename it") from error
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedModel(
            f"tensor '{name}' is {tensor.layout}, {tensor.dtype}: only plain strided tensors can be moved; "
            "convert it, or load this model from storage"
        )
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise UnsupportedModel(
            f"tensor '{name}' is a {type(tensor).__name__}, which wraps other tensors: publish those, by name"
        )
    return tensor
