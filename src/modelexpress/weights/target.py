"""The target: a model's tensors as room for bytes, and what must happen before and after they arrive."""

from dataclasses import replace

import numpy as np
import torch

from modelexpress.errors import NoRoom
from modelexpress.memory import HostArena, aligned
from modelexpress.transfer.compare import Wanted
from modelexpress.transfer.edges import SLOTS, slot_bytes
from modelexpress.transfer.manifest import Manifest, Scope, contiguous_strides
from modelexpress.transfer.pieces import Addresses, Scratch, Windows
from modelexpress.weights.catalog import Catalogue, Kind, Model, addresses_of, catalogue, copyable
from modelexpress.weights.chosen_rows import Parts, RowRanges, choose_rows, parts_of
from modelexpress.wire.tensors import Flags, Integers, Layout


class Target:
    """A model to be filled.

    Tensors on the meta device get memory without being initialised, in an arena or on the device that is asked for,
    and enter the model only by `commit`. Tensors that have memory are filled in place: `written` says whether that
    has begun.

    Args:
        model: A module, or tensors by name.
        device: Where tensors on the meta device get their memory.
        keep: False where what the tensors hold is of no use, even if nothing arrives.
        rows: Tensors that have room for some rows only of what a source holds under their name.

    Raises:
        UnsupportedModel: A tensor has no plain memory, or is on a device that is neither host nor CUDA; or one that
            has some rows shares memory with another.
        ConfigurationError: `rows` does not fit the model.
    """

    def __init__(
        self, model: Model, device: torch.device | str = "cpu", *, keep: bool = True, rows: RowRanges | None = None
    ) -> None:
        self.catalogue = catalogue(model)
        self.catalogue.check_devices("cpu", "cuda", "meta", use="filled")
        self.rows = choose_rows(self.catalogue, rows or {})
        self.keep = keep
        self._device = torch.device(device)
        self.written = False
        self._model = model
        self._fresh: dict[int, torch.Tensor] = {}
        self._staged: dict[int, torch.Tensor] = {}
        self._scratch: dict[int | None, torch.Tensor] = {}
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def wanted(self, scope: Scope) -> Wanted:
        """Return what a source of that scope must hold: buffers that checkpoints leave out are exempt there."""
        listed, expected = self.catalogue, np.flatnonzero(self._expected(scope)).tolist()
        layouts = tuple(kind.layout for kind in listed.kinds)
        if len(expected) == len(listed):
            return Wanted(listed.names, layouts, listed.kind_index, listed.memories, self.rows)
        names = tuple(listed.names[position] for position in expected)
        rows = {number: self.rows[position] for number, position in enumerate(expected) if position in self.rows}
        return Wanted(names, layouts, listed.kind_index[expected], listed.memories[expected], rows)

    @property
    def memories(self) -> int:
        """Number of tensors; tied ones count once."""
        return len(np.unique(self.catalogue.memories))

    @property
    def devices(self) -> set[int | None]:
        """CUDA devices whose memory is filled; None stands for the host."""
        return {_index(self._device_of(kind)) for kind in self.catalogue.kinds}

    def open(self, manifest: Manifest) -> dict[int | None, Addresses]:
        """Return the address that each tensor of a manifest is copied to, by device, tied tensors under one name.

        Tensors whose elements lie in another order than the source's are received beside the model, as are chunks of
        which only a part is wanted.
        """
        self._save_buffers()
        listed = self.catalogue
        held = manifest.tensors.positions(listed.names)
        chosen = self._first_of_each_memory((held >= 0) & (listed.nbytes > 0) & self._expected(manifest.scope))
        held = held[chosen]
        parts = parts_of(manifest, chosen, held, self.rows)
        beside = self._stage(chosen, parts)
        destinations = self._by_device(chosen, held, parts, manifest)
        self.written |= bool((~beside & ~listed.is_meta[chosen]).any())
        for device in destinations.keys() - {None}:
            # What the allocator hands out may still be in use by what was enqueued before.
            torch.cuda.synchronize(device)
        return destinations

    @property
    def staged(self) -> frozenset[str]:
        """Names of the tensors that are received beside the model, anew from each source."""
        return frozenset(self.catalogue.names[position] for position in self._staged)

    def filled(self, manifest: Manifest) -> Integers:
        """Return for each tensor of a manifest the position there of the one that is received for it.

        That is itself, or the first of those that it is tied to here.
        """
        listed, filled = self.catalogue, np.arange(len(manifest))
        held = manifest.tensors.positions(listed.names)
        chosen = self._first_of_each_memory(held >= 0)
        of_memory = np.full(len(listed), -1)
        of_memory[listed.memories[chosen]] = held[chosen]
        found = held >= 0
        filled[held[found]] = of_memory[listed.memories[found]]
        return filled

    def settled_entries(self) -> Catalogue:
        """Return the catalogue that the model will have, with memory for the tensors that have none yet."""
        kinds = tuple(self._with_memory(kind) for kind in self.catalogue.kinds)
        return replace(self.catalogue, tensors=self._tensors(), kinds=kinds)

    def tensor(self, position: int) -> torch.Tensor:
        """Return the tensor that holds the elements of one: the model's own, or the one that will replace it."""
        tensor = self.catalogue.tensors[position]
        if not tensor.is_meta:
            return tensor
        self._materialise()
        return self._fresh[id(tensor)]

    def commit(self) -> None:
        """Put everything that arrived into the model."""
        with torch.no_grad():
            for position, staging in self._staged.items():
                copyable(self.tensor(position)).copy_(copyable(staging))
        self._staged.clear()
        self._scratch.clear()
        if self.catalogue.is_meta.any():
            self._materialise()
            _replace(self._model, self._fresh)
        self._saved.clear()

    def roll_back(self) -> None:
        """Restore the buffers that no checkpoint holds; parameters that were written stay written."""
        with torch.no_grad():
            for tensor, copy in self._saved:
                copyable(tensor).copy_(copy)
        self._staged.clear()
        self._scratch.clear()
        self._saved.clear()

    def _expected(self, scope: Scope) -> Flags:
        persistent = self.catalogue.persistent
        return np.ones(len(persistent), np.bool_) if scope is Scope.MODULE else persistent

    def _first_of_each_memory(self, among: Flags) -> Integers:
        """Return the positions of tensors, of those that are tied the first."""
        positions = np.flatnonzero(among)[::-1]
        first = np.full(len(among), -1)
        first[self.catalogue.memories[positions]] = positions  # of several, the last one written stays
        return np.sort(first[first >= 0])

    def _stage(self, chosen: Integers, parts: Parts) -> Flags:
        """Make room beside the model for tensors in another order than the source's, and say which these are.

        Args:
            chosen: Positions of the tensors that are filled.
            parts: What of the source's they are filled with.
        """
        listed, layouts = self.catalogue, parts.layouts
        pairs = listed.kind_index[chosen] * len(layouts) + parts.layout_index
        kinds = [self._with_memory(kind) for kind in listed.kinds]
        different = [
            pair
            for pair in np.unique(pairs).tolist()
            if not _same_order(kinds[pair // len(layouts)], layouts[pair % len(layouts)])
        ]
        beside = np.isin(pairs, different)
        self._staged = {
            position: _empty_of(replace(self._with_memory(listed.kind(position)), layout=layouts[number]))
            for position, number in zip(chosen[beside].tolist(), parts.layout_index[beside].tolist(), strict=True)
        }
        return beside

    def _by_device(
        self, chosen: Integers, held: Integers, parts: Parts, manifest: Manifest
    ) -> dict[int | None, Addresses]:
        """Return where the tensors `chosen` are, by device; `held` are their positions in the manifest."""
        # Asked for now: since the catalogue was made, memory may have moved to where others can read it.
        rooms = self._tensors()
        if self._staged or len(chosen) < len(rooms):
            rooms = tuple(self._staged.get(position, rooms[position]) for position in chosen.tolist())
        addresses = addresses_of(rooms)
        kinds = self.catalogue.kind_index[chosen]
        indexes = [_index(self._device_of(kind)) for kind in self.catalogue.kinds]
        destinations = {}
        for device in dict.fromkeys(indexes):
            there = np.array([index == device for index in indexes], np.bool_)[kinds]
            if there.any():
                windows = self._windows(manifest, held[there], parts.first[there], parts.end[there], device)
                destinations[device] = Addresses(held[there], addresses[there], windows)
        return destinations

    def _windows(
        self, manifest: Manifest, held: Integers, first: Integers, end: Integers, device: int | None
    ) -> Windows | None:
        """Return the windows of tensors on one device, with scratch for their edges; None where all is wanted."""
        if not self.rows:
            return None
        slot = slot_bytes(manifest, held, first, end)
        if device not in self._scratch or self._scratch[device].numel() < SLOTS * slot:
            self._scratch[device] = _scratch(SLOTS * slot, device)
        return Windows(first, end, Scratch(self._scratch[device].data_ptr(), slot, device))

    def _device_of(self, kind: Kind) -> torch.device:
        return self._device if kind.is_meta else kind.device

    def _with_memory(self, kind: Kind) -> Kind:
        """Return what becomes of a kind of tensors: on the meta device they get memory without gaps."""
        if not kind.is_meta:
            return kind
        strides = kind.layout.strides if kind.is_dense else contiguous_strides(kind.layout.shape)
        return Kind(replace(kind.layout, strides=strides), kind.dtype, self._device, is_dense=True)

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors that hold the elements, as `tensor` does."""
        if not self.catalogue.is_meta.any():
            return self.catalogue.tensors
        self._materialise()
        return tuple(self._fresh.get(id(tensor), tensor) for tensor in self.catalogue.tensors)

    def _materialise(self) -> None:
        if self._fresh:
            return
        listed = self.catalogue
        metas = {id(listed.tensors[position]): position for position in np.flatnonzero(listed.is_meta).tolist()}
        kinds = {key: self._with_memory(listed.kind(position)) for key, position in metas.items()}
        if self._device.type != "cpu":
            try:
                self._fresh = {key: _empty_of(kind) for key, kind in kinds.items()}
            except torch.OutOfMemoryError as error:
                nbytes = sum(kind.layout.nbytes for kind in kinds.values())
                raise NoRoom(f"the model of {nbytes / 1e9:.1f} GB does not fit on '{self._device}': {error}") from error
            return
        arena = HostArena(sum(aligned(kind.layout.nbytes) for kind in kinds.values()))
        for key, kind in kinds.items():
            if not kind.layout.nbytes:
                self._fresh[key] = _empty_of(kind)
                continue
            block = torch.frombuffer(arena.take(kind.layout.nbytes), dtype=kind.dtype)
            self._fresh[key] = block.as_strided(kind.layout.shape, kind.layout.strides)

    def _save_buffers(self) -> None:
        if not self._saved:
            listed = self.catalogue
            self._saved = [
                (listed.tensors[position], copyable(listed.tensors[position]).clone())
                for position in np.flatnonzero(~listed.persistent & ~listed.is_meta).tolist()
            ]


def _index(device: torch.device) -> int | None:
    """Return the ordinal of a CUDA device; None for the host."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _scratch(nbytes: int, device: int | None) -> torch.Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu" if device is None else f"cuda:{device}")
    except torch.OutOfMemoryError as error:
        raise NoRoom(f"{nbytes / 1e9:.1f} GB beside the model do not fit on 'cuda:{device}': {error}") from error


def _empty_of(kind: Kind) -> torch.Tensor:
    layout = kind.layout
    return torch.empty_strided(layout.shape, layout.strides, dtype=kind.dtype, device=kind.device)


def _same_order(kind: Kind, layout: Layout) -> bool:
    """Return whether the elements of a tensor lie in memory as a source's do."""
    steps = zip(layout.shape, kind.layout.strides, layout.strides, strict=True)
    return kind.is_dense and all(size == 1 or own == other for size, own, other in steps)


def _replace(model: Model, fresh: dict[int, torch.Tensor]) -> None:
    """Put real tensors in the place of the meta tensors they were made for."""
    if not isinstance(model, torch.nn.Module):
        for name, tensor in list(model.items()):
            model[name] = fresh.get(id(tensor), tensor)
        return
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in fresh:
                if id(parameter) not in made:
                    made[id(parameter)] = _parameter_like(parameter, fresh[id(parameter)])
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fresh.get(id(buffer), buffer)


def _parameter_like(old: torch.nn.Parameter, data: torch.Tensor) -> torch.nn.Parameter:
    """Return a parameter of the same class and with the same attributes: engines hang loaders on them."""
    new = torch.Tensor._make_subclass(type(old), data, old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new
