"""What one rank of a sharded model holds: each memory once, under one name that is the same at every replica."""

from collections.abc import Iterable, Iterator

import torch

from modelexpress.errors import UnsupportedModel


def rank_tensors(model: torch.nn.Module, aliases: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
    """Return this rank's parameters and persistent buffers by name; of distributed tensors, this rank's own part.

    A tensor that lies within the memory of another one is left out, and so is one that an alias names: an attribute
    that engines add to a module while they wire a model up, and that leads to a module of another place.

    Args:
        model: Every rank's own, in memory.
        aliases: Parts of names, between dots, that are no place of their own.

    Raises:
        UnsupportedModel: A tensor has no memory yet, or only an alias leads to it.
    """
    own: dict[str, torch.Tensor] = {}
    aliased: dict[str, torch.Tensor] = {}
    for name, tensor in _named(model):
        if tensor.is_meta:
            raise UnsupportedModel(f"tensor '{name}' has no memory yet (meta device): give the model memory first")
        (aliased if aliases.intersection(name.split(".")) else own)[name] = local_part(tensor)
    hidden = _within_others(own.items())
    orphans = sorted(_outside(aliased, own))
    if orphans:
        raise UnsupportedModel(
            f"{len(orphans)} tensors are found under an alias alone, such as '{orphans[0]}': "
            "two replicas could name them differently; load this model from storage"
        )
    return {name: tensor for name, tensor in own.items() if name not in hidden}


def every_part(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all that is in this rank's memory of a model, under all of its names: what moves must move together."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: local_part(tensor) for name, tensor in named}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a distributed tensor that this process holds; of any other tensor, the tensor itself."""
    local = getattr(tensor, "to_local", None)
    if local is None:
        return tensor
    with torch.no_grad():  # with gradients it would be a view, and moving that leaves the tensor where it is
        part: torch.Tensor = local()
    return part


def _named(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def _within_others(named: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    """Return the names of tensors whose bytes are all those of another one; of equals, the first stays."""
    hidden: set[str] = set()
    end, device = 0, torch.device("cpu")
    # Memory in order, of what begins at one place the largest first: then a look at what is before suffices.
    ordered = sorted(_ranges(named), key=lambda found: (str(found[3].device), found[0], -found[1]))
    for start, nbytes, name, tensor in ordered:
        if tensor.device == device and start + nbytes <= end:
            hidden.add(name)
        else:
            end, device = start + nbytes, tensor.device
    return hidden


def _outside(aliased: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of aliases whose memory no other name leads to."""
    everything = [*own.items(), *((f"\0{name}", tensor) for name, tensor in aliased.items())]
    hidden = _within_others(everything)
    full = {name for _, _, name, _ in _ranges(everything)}
    return {name for name in aliased if f"\0{name}" in full - hidden}


def _ranges(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[int, int, str, torch.Tensor]]:
    """Yield start, bytes, name and tensor of those that fill one range of memory."""
    for name, tensor in named:
        if tensor.nbytes and tensor.is_contiguous():
            yield tensor.data_ptr(), tensor.nbytes, name, tensor
