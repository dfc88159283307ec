"""Settling a model into an arena, so that its own memory is what other processes map."""

from bisect import bisect_right
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
    """Where the tensors of a model are: their `regions`, one spec a tensor, and what keeps the memory alive."""

    owners: tuple[object, ...]
    regions: tuple[Region, ...]
    tensors: tuple[TensorSpec, ...]


def settle(entries: Sequence[Entry]) -> Settled:
    """See to it that other processes can map a model's tensors, and say where each is.

    Tensors in host memory move into an arena, storage by storage. They stay the same objects; views that share a
    storage go on sharing it. Each storage is freed before the next one moves, so at no time are there two copies of
    the model. Tensors that are in an arena already stay where they are, and so do those in device memory: the
    allocations under them are offered. Of tensors with gaps between their elements a dense copy is offered.

    Raises:
        UnsupportedModel: A tensor has no memory (meta device), or is on a device that is neither host nor CUDA.
        DeviceError: The CUDA driver cannot be asked.
    """
    for entry in entries:
        if entry.tensor.device.type not in ("cpu", "cuda"):
            raise UnsupportedModel(
                f"tensor '{entry.name}' is on device '{entry.tensor.device}': only host and CUDA memory can be offered"
            )
    host = [entry for entry in entries if entry.tensor.device.type == "cpu"]
    gaps = [entry for entry in entries if not is_dense(entry.tensor)]
    arena = _move_into_arena([e for e in host if is_dense(e.tensor) and e.nbytes and not _arena_of(e.tensor)])
    copies = {entry.name: _dense_copy(entry) for entry in gaps}
    return _locate([(entry, copies.get(entry.name, entry.tensor)) for entry in entries], arena, copies)


def _move_into_arena(entries: Sequence[Entry]) -> HostArena:
    spans = _spans(entries)
    arena = HostArena(sum(aligned(span.nbytes) for span in spans))
    for span in spans:
        _move(span, arena)
    return arena


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


def _dense_copy(entry: Entry) -> torch.Tensor:
    """Return a contiguous copy: of host memory in an arena of its own, else on the tensor's own device."""
    if entry.tensor.device.type == "cuda" or not entry.nbytes:
        return entry.tensor.detach().resolve_conj().resolve_neg().contiguous()
    block = torch.frombuffer(HostArena(entry.nbytes).take(entry.nbytes), dtype=entry.tensor.dtype)
    copy = block.view(entry.shape)
    copyable(copy).copy_(copyable(entry.tensor.detach()))
    return copy


def _locate(placed: Sequence[tuple[Entry, torch.Tensor]], own: HostArena, copies: dict[str, torch.Tensor]) -> Settled:
    """Find the region of each tensor: the arena or the allocation that it lies in."""
    full = [(entry, tensor) for entry, tensor in placed if entry.nbytes]
    arenas = {id(arena): arena for _, tensor in full if (arena := _arena_of(tensor)) is not None}
    on_device = [(tensor.data_ptr(), entry.nbytes) for entry, tensor in full if tensor.device.type == "cuda"]
    found = [*(arena.region for arena in arenas.values()), *_device_regions(on_device)]
    # A model of empty tensors needs a region, too: they must lie somewhere.
    regions = sorted(found or [own.region], key=lambda region: region.address)
    starts = [region.address for region in regions]
    specs = []
    for entry, tensor in placed:
        number = bisect_right(starts, tensor.data_ptr()) - 1 if entry.nbytes else 0
        offset = tensor.data_ptr() - starts[number] if entry.nbytes else 0
        strides = tuple(tensor.stride()) if entry.nbytes else contiguous_strides(entry.shape)
        specs.append(
            TensorSpec(entry.name, entry.dtype, entry.shape, strides, number, offset, entry.nbytes, entry.persistent)
        )
    # In the order of the memory, which is the order in which targets read.
    specs.sort(key=lambda spec: (spec.region, spec.offset))
    return Settled((own, *arenas.values(), copies, tuple(t for _, t in full)), tuple(regions), tuple(specs))


def _device_regions(ranges: Sequence[tuple[int, int]]) -> list[Region]:
    if not ranges:
        return []
    # Only where a GPU is involved: hosts without one never import what reaches for it.
    from modelexpress.memory.cuda_regions import regions_under

    return regions_under(ranges)


def _arena_of(tensor: torch.Tensor) -> HostArena | None:
    if tensor.device.type != "cpu":
        return None
    return HostArena.holding(tensor.data_ptr(), tensor.numel() * tensor.element_size())
