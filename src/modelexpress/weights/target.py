"""The target: a model's tensors as room for bytes, and what must happen before and after they arrive."""

from collections import defaultdict

import torch

from modelexpress.errors import UnsupportedModel
from modelexpress.memory import HostArena, aligned
from modelexpress.transfer.compare import Wanted
from modelexpress.transfer.manifest import Manifest, Scope, contiguous_strides
from modelexpress.weights.catalog import Entry, Model, catalogue, copyable, is_dense


class Target:
    """A model to be filled.

    Tensors on the meta device get memory without being initialised, in an arena or on the device that is asked for,
    and enter the model only by `commit`. Tensors that have memory are filled in place: `written` says whether that
    has begun.

    Args:
        model: A module, or tensors by name.
        device: Where tensors on the meta device get their memory.

    Raises:
        UnsupportedModel: A tensor has no plain memory, or is on a device that is neither host nor CUDA.
    """

    def __init__(self, model: Model, device: torch.device | str = "cpu") -> None:
        self.entries = catalogue(model)
        self._device = torch.device(device)
        self.written = False
        self._model = model
        self._fresh: dict[int, torch.Tensor] = {}
        self._staged: dict[str, torch.Tensor] = {}
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        for entry in self.entries:
            if entry.tensor.device.type not in ("cpu", "cuda", "meta"):
                raise UnsupportedModel(
                    f"tensor '{entry.name}' is on '{entry.tensor.device}': only host and CUDA memory can be filled"
                )

    def wanted(self, scope: Scope) -> list[Wanted]:
        """Return what a source of that scope must hold: buffers that checkpoints leave out are exempt there."""
        return [
            Wanted(entry.name, entry.dtype, entry.shape, entry.nbytes, entry.memory) for entry in self._expected(scope)
        ]

    @property
    def devices(self) -> set[int | None]:
        """CUDA devices whose memory is filled; None stands for the host."""
        return {_index(self._device if entry.is_meta else entry.tensor.device) for entry in self.entries}

    def open(self, manifest: Manifest) -> dict[int | None, dict[str, int]]:
        """Return the address that each tensor of a manifest is copied to, by device, tied tensors under one name.

        Tensors whose elements lie in another order than the source's are received beside the model.
        """
        self._save_buffers()
        destinations: dict[int | None, dict[str, int]] = defaultdict(dict)
        filled: set[int] = set()
        for entry in self._expected(manifest.scope):
            if entry.memory in filled or entry.name not in manifest.index or not entry.nbytes:
                continue
            filled.add(entry.memory)
            spec = manifest.tensors[manifest.index[entry.name]]
            room = self._room(entry, spec.strides)
            destinations[_index(room.device)][entry.name] = room.data_ptr()
        for device in destinations.keys() - {None}:
            # What the allocator hands out may still be in use by what was enqueued before.
            torch.cuda.synchronize(device)
        return dict(destinations)

    @property
    def staged(self) -> frozenset[str]:
        """Names of the tensors that are received beside the model, anew from each source."""
        return frozenset(self._staged)

    def tensor(self, entry: Entry) -> torch.Tensor:
        """Return the tensor that holds an entry's elements: the model's own, or the one that will replace it."""
        if not entry.is_meta:
            return entry.tensor
        if not self._fresh:
            self._materialise()
        return self._fresh[id(entry.tensor)]

    def commit(self) -> None:
        """Put everything that arrived into the model."""
        by_name = {entry.name: entry for entry in self.entries}
        with torch.no_grad():
            for name, staging in self._staged.items():
                copyable(self.tensor(by_name[name])).copy_(copyable(staging))
        self._staged.clear()
        if any(entry.is_meta for entry in self.entries):
            self._materialise()
            _replace(self._model, self._fresh)
        self._saved.clear()

    def roll_back(self) -> None:
        """Restore the buffers that no checkpoint holds; parameters that were written stay written."""
        with torch.no_grad():
            for tensor, copy in self._saved:
                copyable(tensor).copy_(copy)
        self._staged.clear()
        self._saved.clear()

    def _expected(self, scope: Scope) -> list[Entry]:
        return [entry for entry in self.entries if entry.persistent or scope is Scope.MODULE]

    def _room(self, entry: Entry, strides: tuple[int, ...]) -> torch.Tensor:
        tensor = self.tensor(entry)
        if _same_order(tensor, strides):
            self.written |= not entry.is_meta
            return tensor
        staging = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
        self._staged[entry.name] = staging
        return staging

    def _materialise(self) -> None:
        if self._fresh:
            return
        metas = {id(entry.tensor): entry for entry in self.entries if entry.is_meta}
        if self._device.type != "cpu":
            self._fresh = {key: _empty_like(entry, self._device) for key, entry in metas.items()}
            return
        arena = HostArena(sum(aligned(entry.nbytes) for entry in metas.values()))
        for key, entry in metas.items():
            if not entry.nbytes:
                self._fresh[key] = torch.empty(entry.shape, dtype=entry.tensor.dtype)
                continue
            block = torch.frombuffer(arena.take(entry.nbytes), dtype=entry.tensor.dtype)
            self._fresh[key] = block.as_strided(entry.shape, _strides(entry))

    def _save_buffers(self) -> None:
        if not self._saved:
            self._saved = [
                (entry.tensor, copyable(entry.tensor).clone())
                for entry in self.entries
                if not entry.persistent and not entry.is_meta
            ]


def _index(device: torch.device) -> int | None:
    """Return the ordinal of a CUDA device; None for the host."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _strides(entry: Entry) -> tuple[int, ...]:
    """Return the strides that new memory for a meta tensor gets: its own, if they leave no gaps."""
    permuted = not entry.tensor.is_contiguous() and is_dense(entry.tensor)
    return tuple(entry.tensor.stride()) if permuted else contiguous_strides(entry.shape)


def _empty_like(entry: Entry, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(entry.shape, _strides(entry), dtype=entry.tensor.dtype, device=device)


def _same_order(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    if tensor.is_conj() or tensor.is_neg():
        return False
    if tensor.stride() == strides:
        return True
    steps = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(size == 1 or own == other for size, own, other in steps)


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
