"""Settling a model into an arena, so that its own memory is what other processes map."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from modelexpress.errors import UnsupportedModel
from modelexpress.memory import HostArena, Region, aligned
from modelexpress.transfer.manifest import contiguous_strides
from modelexpress.weights.catalog import Entry, copyable, is_dense
from modelexpress.wire.records import TensorSpec


@dataclass(frozen=True)
class Settled:
    """Where the tensors of a model are: `arenas` and their `regions`, and one spec a tensor."""

    arenas: tuple[HostArena, ...]
    regions: tuple[Region, ...]
    tensors: tuple[TensorSpec, ...]


def settle(entries: Sequence[Entry]) -> Settled:
    """Move a model's tensors into shareable memory, storage by storage, and say where each is.

    The tensors stay the same objects; views that share a storage go on sharing it. Each storage is freed before
    the next one moves, so at no time are there two copies of the model. Tensors that are in an arena already
    stay where they are. Tensors with gaps between their elements stay, too: a dense copy of them is offered.

    Raises:
        UnsupportedModel: A tensor has no memory (meta device) or is not in host memory.
    """
    for entry in entries:
        if entry.tensor.device.type != "cpu":
            raise UnsupportedModel(
                f"tensor '{entry.name}' is on device '{entry.tensor.device}': only host memory can be offered"
            )
    moving = [e for e in entries if is_dense(e.tensor) and e.nbytes and not _arena_of(e.tensor)]
    copied = [e for e in entries if not is_dense(e.tensor)]
    spans = _spans(moving)
    arena = HostArena(sum(aligned(span.nbytes) for span in spans) + sum(aligned(entry.nbytes) for entry in copied))
    for span in spans:
        _move(span, arena)
    copies = {entry.name: _dense_copy(entry, arena) for entry in copied}
    return _locate(entries, copies, arena)


@dataclass(frozen=True)
class _Span:
    """The bytes of one storage that a model's tensors reach: from `start` on, in bytes of the storage."""

    start: int
    nbytes: int
    tensors: tuple[torch.Tensor, ...]


def _spans(entries: Iterable[Entry]) -> list[_Span]:
    """Group tensors by storage; tensors of one storage move together, whatever lies between them."""
    groups: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
    for entry in entries:
        groups[entry.tensor.untyped_storage().data_ptr()][id(entry.tensor)] = entry.tensor
    spans = []
    for group in groups.values():
        tensors = tuple(group.values())
        start = min(int(t.storage_offset()) * t.element_size() for t in tensors)
        end = max((int(t.storage_offset()) + t.numel()) * t.element_size() for t in tensors)
        # Down to a multiple of every item size, so that offsets in the new storage are whole elements.
        start -= start % 16
        spans.append(_Span(start, end - start, tensors))
    return spans


def _move(span: _Span, arena: HostArena) -> None:
    block = torch.frombuffer(arena.take(span.nbytes), dtype=torch.uint8)
    old = torch.empty(0, dtype=torch.uint8).set_(span.tensors[0].untyped_storage())
    block.copy_(old[span.start : span.start + span.nbytes])
    for tensor in span.tensors:
        offset = tensor.storage_offset() - span.start // tensor.element_size()
        fresh = torch.empty(0, dtype=tensor.dtype)
        tensor.data = fresh.set_(block.untyped_storage(), offset, tensor.shape, tensor.stride())


def _dense_copy(entry: Entry, arena: HostArena) -> torch.Tensor:
    if not entry.nbytes:
        return torch.empty(entry.tensor.shape, dtype=entry.tensor.dtype)
    block = torch.frombuffer(arena.take(entry.nbytes), dtype=entry.tensor.dtype)
    copy = block.view(entry.tensor.shape)
    copyable(copy).copy_(copyable(entry.tensor.detach()))
    return copy


def _locate(entries: Sequence[Entry], copies: dict[str, torch.Tensor], own: HostArena) -> Settled:
    arenas: dict[int, HostArena] = {}
    specs = []
    for entry in entries:
        tensor = copies.get(entry.name, entry.tensor)
        arena = (_arena_of(tensor) if entry.nbytes else None) or own
        arenas.setdefault(id(arena), arena)
        region = list(arenas).index(id(arena))
        offset = tensor.data_ptr() - arena.region.address if entry.nbytes else 0
        shape = tuple(tensor.shape)
        strides = tuple(tensor.stride()) if entry.nbytes else contiguous_strides(shape)
        specs.append(
            TensorSpec(entry.name, entry.dtype, shape, strides, region, offset, entry.nbytes, entry.persistent)
        )
    found = tuple(arenas.values())
    # In the order of the memory, which is the order in which targets read.
    specs.sort(key=lambda spec: (spec.region, spec.offset))
    return Settled(found, tuple(arena.region for arena in found), tuple(specs))


def _arena_of(tensor: torch.Tensor) -> HostArena | None:
    return HostArena.holding(tensor.data_ptr(), tensor.numel() * tensor.element_size())
