"""Settling a model into an arena, so that its own memory is what other processes map."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from modelexpress.memory import HostArena, Region, aligned
from modelexpress.transfer.manifest import contiguous_strides
from modelexpress.weights.catalog import Catalogue, Kind, addresses_of, copyable
from modelexpress.wire.tensors import Flags, Integers, Layout, Tensors


@dataclass(frozen=True)
class Settled:
    """Where the tensors of a model are: their `regions`, the place of each, and what keeps the memory alive."""

    owners: tuple[object, ...]
    regions: tuple[Region, ...]
    tensors: Tensors

    def places(self, names: Sequence[str]) -> tuple[Integers, Integers]:
        """Return region and offset of each of these tensors, all of which are there."""
        positions = self.tensors.positions(names)
        return self.tensors.regions[positions], self.tensors.offsets[positions]


def settle(listed: Catalogue, *, keep: bool = True) -> Settled:
    """See to it that other processes can map a model's tensors, and say where each is.

    Tensors in host memory move into an arena, storage by storage. They stay the same objects; views that share a
    storage go on sharing it. Each storage is freed before the next one moves, so at no time are there two copies of
    the model. Tensors that are in an arena already stay where they are, and so do those in device memory: the
    allocations under them are offered. Of tensors with gaps between their elements a dense copy is offered.

    Args:
        listed: The model.
        keep: False where all of it is about to be overwritten: what tensors in host memory hold is not moved along.

    Raises:
        UnsupportedModel: A tensor has no memory (meta device), or is on a device that is neither host nor CUDA.
        DeviceError: The CUDA driver cannot be asked.
    """
    listed.check_devices("cpu", "cuda", use="offered")
    dense = _by_kind(listed, [kind.is_dense for kind in listed.kinds])
    on_host = _by_kind(listed, [kind.device.type == "cpu" for kind in listed.kinds])
    movable = dense & on_host & (listed.nbytes > 0)
    movable &= ~_arenas_holding(listed.tensors, listed.nbytes, movable)[1]
    arena = _move_into_arena((listed.tensors[position] for position in np.flatnonzero(movable).tolist()), keep)
    copies = {
        position: _dense_copy(listed.tensors[position], listed.kind(position).layout)
        for position in np.flatnonzero(~dense).tolist()
    }
    tensors = listed.tensors
    offered = tuple(copies.get(position, tensor) for position, tensor in enumerate(tensors)) if copies else tensors
    return _locate(listed, offered, on_host, arena)


def _by_kind(listed: Catalogue, answers: Sequence[bool]) -> Flags:
    """Return for each tensor the answer that was given for its kind."""
    return np.array(answers, np.bool_)[listed.kind_index]


def _arenas_holding(
    tensors: Sequence[torch.Tensor], nbytes: Integers, asked: Flags
) -> tuple[tuple[HostArena, ...], Flags]:
    """Return the arenas that hold the tensors that are asked about, and for each tensor whether one does."""
    starts = addresses_of(tensors)
    ends = starts + nbytes.astype(np.uint64)
    arenas: list[HostArena] = []
    inside = np.zeros(len(asked), np.bool_)
    for position in np.flatnonzero(asked).tolist():
        if inside[position]:
            continue
        arena = HostArena.holding(int(starts[position]), int(nbytes[position]))
        if arena is not None:
            arenas.append(arena)
            first, end = arena.region.address, arena.region.address + arena.region.nbytes
            inside |= asked & (starts >= first) & (ends <= end)
    return tuple(arenas), inside


def _move_into_arena(tensors: Iterable[torch.Tensor], keep: bool) -> HostArena:
    spans = _spans(tensors)
    arena = HostArena(sum(aligned(span.nbytes) for span in spans))
    for span in spans:
        _move(span, arena, keep)
    return arena


@dataclass(frozen=True)
class _Span:
    """The bytes of one storage that a model's tensors reach: from `start` on, in bytes of the storage."""

    start: int
    nbytes: int
    tensors: tuple[torch.Tensor, ...]


def _spans(tensors: Iterable[torch.Tensor]) -> list[_Span]:
    """Group tensors by storage; tensors of one storage move together, whatever lies between them."""
    groups: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
    for tensor in tensors:
        groups[tensor.untyped_storage().data_ptr()][id(tensor)] = tensor
    spans = []
    for group in groups.values():
        together = tuple(group.values())
        start = min(int(t.storage_offset()) * t.element_size() for t in together)
        end = max((int(t.storage_offset()) + t.numel()) * t.element_size() for t in together)
        # Down to a multiple of every item size, so that offsets in the new storage are whole elements.
        start -= start % 16
        spans.append(_Span(start, end - start, together))
    return spans


def _move(span: _Span, arena: HostArena, keep: bool) -> None:
    block = torch.frombuffer(arena.take(span.nbytes), dtype=torch.uint8)
    if keep:
        old = torch.empty(0, dtype=torch.uint8).set_(span.tensors[0].untyped_storage())
        block.copy_(old[span.start : span.start + span.nbytes])
    for tensor in span.tensors:
        offset = tensor.storage_offset() - span.start // tensor.element_size()
        fresh = torch.empty(0, dtype=tensor.dtype)
        tensor.data = fresh.set_(block.untyped_storage(), offset, tensor.shape, tensor.stride())


def _dense_copy(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return a contiguous copy: of host memory in an arena of its own, else on the tensor's own device."""
    if tensor.device.type == "cuda" or not layout.nbytes:
        return tensor.detach().resolve_conj().resolve_neg().contiguous()
    block = torch.frombuffer(HostArena(layout.nbytes).take(layout.nbytes), dtype=tensor.dtype)
    copy = block.view(layout.shape)
    copyable(copy).copy_(copyable(tensor.detach()))
    return copy


def _locate(listed: Catalogue, offered: tuple[torch.Tensor, ...], on_host: Flags, own: HostArena) -> Settled:
    """Find the region of each tensor: the arena or the allocation that it lies in."""
    full = listed.nbytes > 0
    arenas, _ = _arenas_holding(offered, listed.nbytes, full & on_host)
    addresses = addresses_of(offered)
    on_device = zip(addresses[full & ~on_host].tolist(), listed.nbytes[full & ~on_host].tolist(), strict=True)
    found = [*(arena.region for arena in arenas), *_device_regions(list(on_device))]
    # A model of empty tensors needs a region, too: they must lie somewhere.
    regions = sorted(found or [own.region], key=lambda region: region.address)
    starts = np.array([region.address for region in regions], np.uint64)
    numbers = np.where(full, np.searchsorted(starts, addresses, side="right") - 1, 0)
    offsets = np.where(full, (addresses - starts[numbers]).astype(np.int64), 0)
    # In the order of the memory, which is the order in which targets read.
    order = np.lexsort((offsets, numbers))
    tensors = Tensors(
        tuple(listed.names[position] for position in order.tolist()),
        tuple(_offered_layout(kind) for kind in listed.kinds),
        listed.kind_index[order],
        numbers[order],
        offsets[order],
        listed.persistent[order],
    )
    return Settled((own, *arenas, offered), tuple(regions), tensors)


def _offered_layout(kind: Kind) -> Layout:
    """Return how the elements lie in what is offered of a tensor."""
    if kind.is_dense and kind.layout.nbytes:
        return kind.layout
    return replace(kind.layout, strides=contiguous_strides(kind.layout.shape))


def _device_regions(ranges: Sequence[tuple[int, int]]) -> list[Region]:
    if not ranges:
        return []
    # Only where a GPU is involved: hosts without one never import what reaches for it.
    from modelexpress.memory.cuda_regions import regions_under

    return regions_under(ranges)
