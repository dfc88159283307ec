"""The state of an engine's model: every tensor of it, hidden ones included, and the plain values that loading sets.

Engines hang tensors not on modules alone but on the objects that compute for them: quantisation methods, kernels,
backends. And loading sets numbers and flags, such as a scale that was read from the checkpoint. All of that must be
at a target as it is at the source.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from modelexpress.errors import UnsupportedModel

VALUES = "modelexpress.values"
"""Name, up to a digest of what they are called, of the tensor that carries plain values."""

Values = dict[str, bool | int | float]
"""Numbers and flags of a model by the path at which they hang."""

_MODULE_FIELDS = frozenset(torch.nn.Module().__dict__)
_LEFT_OUT = ("kv_cache", "workspace", "device", "rank", "stream")
"""Parts of the names of what an engine keeps beside the weights, or of what differs from process to process."""
_POINTERS_BYTES = 1 << 20
"""Whole numbers of 64 bits in no more memory than this may be addresses, which kernels keep of their weights."""
_CARRIED_BYTES = 256 << 10
"""Room for values that travel, as compressed JSON; names repeat from layer to layer."""
_MOST_TEXT = 64 << 20
"""Bytes of that JSON which are read; what is longer is none that a source has written."""
_DEPTH = 4
"""Objects within objects, below a module."""


def tensors_of(model: torch.nn.Module, packages: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return every tensor of a model by the path at which it hangs.

    Args:
        model: Parameters and buffers have the names that `state_dict` gives them.
        packages: Those whose objects are looked into for hidden tensors, as prefixes of module names.
    """
    found: dict[str, torch.Tensor] = {}
    for path, value in _leaves(model, packages):
        if isinstance(value, torch.Tensor):
            found.setdefault(path, value)
    own = {id(tensor) for _, tensor in [*model.named_parameters(), *model.named_buffers()]}
    hidden = {path: tensor for path, tensor in found.items() if id(tensor) not in own}
    for path in _pointers(hidden, found.values()):
        del found[path]
    return found


def values_of(model: torch.nn.Module, packages: tuple[str, ...]) -> Values:
    """Return the numbers and flags that hang on a model's modules and on the objects below them."""
    return {path: value for path, value in _leaves(model, packages) if _is_plain(value)}


def changes(before: Values, after: Values) -> dict[str, torch.Tensor]:
    """Return the tensor, by its name, that carries which values loading changed, or hung on the model, and to what.

    Args:
        before: Values of the model as it was made; the tensor's name is a digest of what they are called.
        after: Values after loading.

    Raises:
        UnsupportedModel: They are too many.
    """
    changed = {path: value for path, value in after.items() if path not in before or before[path] != value}
    text = zlib.compress(json.dumps(changed).encode())
    if len(text) > _CARRIED_BYTES:
        raise UnsupportedModel(f"loading changes {len(changed)} numbers and flags of the model, which are too many")
    carried = bytearray(text.ljust(_CARRIED_BYTES, bytes(1)))
    return {_carrier(before): torch.frombuffer(carried, dtype=torch.uint8)}


def room_for_changes(before: Values) -> dict[str, torch.Tensor]:
    """Return a tensor to receive what `changes` returns at a source whose model was made with the same values."""
    return {_carrier(before): torch.zeros(_CARRIED_BYTES, dtype=torch.uint8, device="cpu")}


def apply_changes(model: torch.nn.Module, packages: tuple[str, ...], received: torch.Tensor) -> int:
    """Set the values that loading changed at the source; return how many differed here.

    Args:
        model: As `changes` was told of the source's.
        packages: As for `tensors_of`.
        received: What the source's `changes` returned.

    Raises:
        UnsupportedModel: One hangs where this model has nothing to hang it on, or none can be read.
    """
    wanted, count = _decoded(received), 0
    places: dict[str, dict[Any, Any]] = {}
    for holder, key, path in _holders(model, packages):
        places[path.removesuffix(str(key))] = holder
        own = holder[key]
        if path in wanted and _is_plain(own):
            value = wanted.pop(path)
            count += own != value
            holder[key] = type(own)(value)
    for path, value in wanted.items():
        prefix, _, key = path.rpartition(".")
        if key in _MODULE_FIELDS:
            raise UnsupportedModel(f"the source would set '{path}', which is torch's own; restart the source")
        _place(model, places, prefix)[key] = value
    return count + len(wanted)


def _decoded(received: torch.Tensor) -> Values:
    try:
        found = json.loads(zlib.decompressobj().decompress(received.numpy().tobytes(), _MOST_TEXT))
    except (zlib.error, ValueError) as error:
        raise UnsupportedModel(f"the source's values cannot be read: {error}; restart the source") from error
    if not isinstance(found, dict) or not all(_is_plain(value) for value in found.values()):
        raise UnsupportedModel("the source's values are not what values can be; restart the source")
    return found


def _place(model: torch.nn.Module, places: Mapping[str, dict[Any, Any]], prefix: str) -> dict[Any, Any]:
    """Return where attributes of the object at a path are kept."""
    module = dict(model.named_modules(remove_duplicate=False)).get(prefix)
    found: dict[Any, Any] | None = places.get(f"{prefix}.") if module is None else module.__dict__
    if found is None:
        raise UnsupportedModel(f"loading at the source hung values on '{prefix}', which this model does not have")
    return found


def _pointers(hidden: Mapping[str, torch.Tensor], tensors: Iterable[torch.Tensor]) -> list[str]:
    """Return which hidden tensors hold addresses of other tensors: every process has its own."""
    wide = {
        path: tensor.detach().cpu().reshape(-1)
        for path, tensor in hidden.items()
        if tensor.dtype is torch.int64 and 0 < tensor.nbytes <= _POINTERS_BYTES and not tensor.is_meta
    }
    if not wide:
        return []
    starts = torch.tensor(sorted({tensor.data_ptr() for tensor in tensors if not tensor.is_meta and tensor.nbytes}))
    return [path for path, numbers in wide.items() if bool(torch.isin(numbers, starts).any())]


def _carrier(names: Iterable[str]) -> str:
    return f"{VALUES}.{hashlib.sha256(chr(10).join(sorted(names)).encode()).hexdigest()[:16]}"


def _is_plain(value: object) -> bool:
    """Return whether a value means the same in another process; addresses are whole numbers, too, but larger ones."""
    return type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 31)


def _leaves(model: torch.nn.Module, packages: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for holder, key, path in _holders(model, packages):
        yield path, holder[key]


def _holders(model: torch.nn.Module, packages: tuple[str, ...]) -> Iterator[tuple[dict[Any, Any], Any, str]]:
    """Yield (mapping, key, path) of each thing that hangs on a model, whatever it is."""
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None:
                    yield own, key, prefix + key
        if id(module) not in seen:
            seen.add(id(module))
            fields = {key: value for key, value in vars(module).items() if key not in _MODULE_FIELDS}
            yield from _below(vars(module), fields, prefix, packages, seen, _DEPTH)


def _below(
    holder: dict[Any, Any],
    fields: Mapping[Any, Any],
    prefix: str,
    packages: tuple[str, ...],
    seen: set[int],
    depth: int,
) -> Iterator[tuple[dict[Any, Any], Any, str]]:
    for key, value in list(fields.items()):
        if any(part in str(key) for part in _LEFT_OUT):
            continue
        path = f"{prefix}{key}"
        if isinstance(value, torch.Tensor) or _is_plain(value):
            yield holder, key, path
        elif depth and id(value) not in seen and not isinstance(value, torch.nn.Module):
            inner = _inner(value, packages)
            if inner:
                seen.add(id(value))
                yield from _below(inner, inner, f"{path}.", packages, seen, depth - 1)


def _inner(value: object, packages: tuple[str, ...]) -> dict[Any, Any]:
    """Return what hangs on an object that computes for a module, or is in a container; nothing for all others."""
    if isinstance(value, dict):
        return value if all(isinstance(key, str | int) for key in value) else {}
    if isinstance(value, list | tuple):
        return {number: item for number, item in enumerate(value) if isinstance(item, torch.Tensor)}
    kind = type(value)
    if not kind.__module__.startswith(packages) or "Config" in kind.__name__:
        return {}
    return getattr(value, "__dict__", {})
