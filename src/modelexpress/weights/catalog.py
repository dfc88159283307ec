"""The catalogue of a model: every tensor of a module or mapping, and which of them are the same memory."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from modelexpress.errors import UnsupportedModel
from modelexpress.memory.changing import anything_changes, first_changing
from modelexpress.transfer import manifest
from modelexpress.wire.tensors import Flags, Integers, Layout

Model = torch.nn.Module | MutableMapping[str, torch.Tensor]
"""What can be published and loaded: a module, or tensors by name."""

Addresses = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What many tensors of a model have in common.

    Args:
        layout: Their dtype by its name, shape, strides and bytes.
        dtype: Torch's own.
        device: Where they are.
        is_dense: Whether their elements, as they are stored, fill one range of memory, in any order.
    """

    layout: Layout
    dtype: torch.dtype
    device: torch.device
    is_dense: bool

    @property
    def is_meta(self) -> bool:
        """Whether the tensors have no memory yet."""
        return self.device.type == "meta"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The tensors of a model, column by column.

    Args:
        names: As in `state_dict`; one a tensor, like all that follow but `kinds`.
        tensors: The parameters and buffers themselves.
        kinds: Those that occur.
        kind_index: Which of them each tensor is.
        memories: Tensors with the same number are one and the same memory (tied weights). The numbers count from 0.
        persistent: False for buffers that a checkpoint leaves out.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    kinds: tuple[Kind, ...]
    kind_index: Integers
    memories: Integers
    persistent: Flags

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def nbytes(self) -> Integers:
        """Bytes of each tensor."""
        return np.array([kind.layout.nbytes for kind in self.kinds], np.int64)[self.kind_index]

    @cached_property
    def is_meta(self) -> Flags:
        """For each tensor whether it has no memory yet."""
        return np.array([kind.is_meta for kind in self.kinds], np.bool_)[self.kind_index]

    def kind(self, position: int) -> Kind:
        """Return what the tensor at `position` is."""
        return self.kinds[int(self.kind_index[position])]

    def check_devices(self, *supported: str, use: str) -> None:
        """Check that every tensor is on a type of device where it can be put to a use.

        Raises:
            UnsupportedModel: One is not.
        """
        for number, kind in enumerate(self.kinds):
            if kind.device.type not in supported:
                name = self.names[int(np.argmax(self.kind_index == number))]
                raise UnsupportedModel(
                    f"tensor '{name}' is on device '{kind.device}': only host and CUDA memory can be {use}"
                )


def catalogue(model: Model) -> Catalogue:
    """List every parameter and buffer of a module, or every tensor of a mapping, under all of its names.

    Raises:
        UnsupportedModel: A tensor has no plain strided memory: sparse, quantised by torch's own scheme, or a
            wrapper around other tensors; or its content changes by itself, as that of experts that ranks share.
    """
    names, tensors, transient = _tensors(model)
    _check_names(names)
    kinds, kind_index = _kinds(names, tensors)
    if anything_changes():
        _check_lasting(names, tensors, kinds, kind_index)
    persistent = np.ones(len(names), np.bool_)
    persistent[transient] = False
    return Catalogue(
        tuple(names), tuple(tensors), tuple(kinds), kind_index, _memories(tensors, kinds, kind_index), persistent
    )


def addresses_of(tensors: Sequence[torch.Tensor]) -> Addresses:
    """Return the address of each tensor's first element; zero where it has none."""
    return np.fromiter(map(torch.Tensor.data_ptr, tensors), np.uint64, len(tensors))


def copyable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that torch can copy: it has no copy kernel for the dtypes below one byte."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _tensors(model: Model) -> tuple[list[str], list[torch.Tensor], list[int]]:
    """Return names and tensors, and the positions of the buffers that a checkpoint leaves out."""
    if isinstance(model, Mapping):
        return list(model.keys()), list(model.values()), []
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    buffers: list[tuple[str, torch.Tensor, bool]] = []
    _collect(model, "", names, tensors, buffers)
    transient = [len(names) + number for number, (_, _, left_out) in enumerate(buffers) if left_out]
    names += (name for name, _, _ in buffers)
    tensors += (buffer for _, buffer, _ in buffers)
    return names, tensors, transient


def _collect(
    module: torch.nn.Module,
    prefix: str,
    names: list[str],
    tensors: list[torch.Tensor],
    buffers: list[tuple[str, torch.Tensor, bool]],
) -> None:
    """Append the parameters and buffers of a module and of those in it, as `state_dict` walks through them.

    `named_parameters` names the same ones, in nested generators that take longer than all else here.
    """
    for name, parameter in module._parameters.items():
        if parameter is not None:
            names.append(prefix + name)
            tensors.append(parameter)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            buffers.append((prefix + name, buffer, name in module._non_persistent_buffers_set))
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", names, tensors, buffers)


def _kinds(names: Iterable[str], tensors: Sequence[torch.Tensor]) -> tuple[list[Kind], Integers]:
    """Return the kinds of tensors, and which of them each one is."""
    plain: set[type] = set()
    numbers: dict[object, int] = {}
    kinds: list[Kind] = []
    index: list[int] = []
    strided, find, append = torch.strided, numbers.get, index.append
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.layout is not strided or type(tensor) not in plain:
            _check_plain(name, tensor)
            plain.add(type(tensor))
        # What is asked of every tensor costs a tenth of a microsecond each time; all else is asked once a kind.
        key = (tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor.is_conj(), tensor.is_neg())
        number = find(key)
        if number is None:
            _check_plain(name, tensor)
            number = numbers[key] = len(kinds)
            kinds.append(_kind(tensor))
        append(number)
    return kinds, np.array(index, np.int64)


def _kind(tensor: torch.Tensor) -> Kind:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    layout = Layout(str(tensor.dtype).removeprefix("torch."), shape, strides, tensor.numel() * tensor.element_size())
    as_stored = not (tensor.is_conj() or tensor.is_neg())
    return Kind(layout, tensor.dtype, tensor.device, as_stored and manifest.is_dense(shape, strides))


def _memories(tensors: Sequence[torch.Tensor], kinds: Sequence[Kind], kind_index: Integers) -> Integers:
    """Number the memories: tensors have the same one if they are the same elements of the same memory."""
    without = np.array([kind.is_meta or not kind.layout.nbytes for kind in kinds], np.bool_)[kind_index]
    places = addresses_of(tensors)
    if without.any():
        places = np.where(without, np.fromiter(map(id, tensors), np.uint64, len(tensors)), places)
    ordered = np.sort(places)
    if np.all(ordered[1:] != ordered[:-1]):
        return np.arange(len(places))
    numbers: dict[tuple[int, int], int] = {}
    keys = zip(places.tolist(), kind_index.tolist(), strict=True)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _check_lasting(
    names: Sequence[str], tensors: Sequence[torch.Tensor], kinds: Sequence[Kind], kind_index: Integers
) -> None:
    reaches = np.array([0 if kind.is_meta else _reach(kind) for kind in kinds], np.int64)[kind_index]
    if (found := first_changing(addresses_of(tensors), reaches)) is not None:
        position, reason = found
        raise UnsupportedModel(f"tensor '{names[position]}' {reason}")


def _reach(kind: Kind) -> int:
    """Return the bytes from a tensor's first element to the end of its last, gaps included."""
    shape, strides = kind.layout.shape, kind.layout.strides
    if not kind.layout.nbytes:
        return 0
    return (1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))) * kind.dtype.itemsize


def _check_names(names: Sequence[str]) -> None:
    if "".join(names).isascii():
        return
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedModel(f"the tensor name {name!r} is no valid text: rename it") from error


def _check_plain(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedModel(
            f"tensor '{name}' is {tensor.layout}, {tensor.dtype}: only plain strided tensors can be moved; "
            "convert it, or load this model from storage"
        )
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise UnsupportedModel(
            f"tensor '{name}' is a {type(tensor).__name__}, which wraps other tensors: publish those, by name"
        )
