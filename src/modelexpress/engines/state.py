"""The state of an engine's model: every tensor of it, hidden ones included, and the plain values that loading sets.

Engines hang tensors not on modules alone but on the objects that compute for them: quantisation methods, kernels,
backends. And loading sets numbers and flags, such as a scale that was read from the checkpoint. All of that must be
at a target as it is at the source.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

VALUES = "modelexpress.values"
"""Name, up to a digest of what they are called, of the tensor that carries plain values."""

Values = dict[str, float]
"""Numbers and flags of a model by the path at which they hang."""

_MODULE_FIELDS = frozenset(torch.nn.Module().__dict__)
_LEFT_OUT = ("kv_cache", "workspace", "device", "rank", "stream")
"""Parts of the names of what an engine keeps beside the weights, or of what differs from process to process."""
_POINTERS_BYTES = 1 << 20
"""Whole numbers of 64 bits in no more memory than this may be addresses, which kernels keep of their weights."""
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
    return {path: float(value) for path, value in _leaves(model, packages) if _is_plain(value)}


def changes(names: Mapping[str, object], before: Values, after: Values) -> dict[str, torch.Tensor]:
    """Return the tensor, by its name, that carries which of the values changed, and to what.

    Args:
        names: The values that source and target have in common; the tensor's name is a digest of theirs.
        before: Values before loading.
        after: Values after it.
    """
    ordered = sorted(names)
    rows = [(float(after.get(name) != before.get(name)), after.get(name, 0.0)) for name in ordered]
    return {_carrier(ordered): torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1, 2)}


def room_for_changes(names: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return a tensor to receive what `changes` returns at a source with the same values."""
    ordered = sorted(names)
    return {_carrier(ordered): torch.zeros((len(ordered), 2), dtype=torch.float64, device="cpu")}


def apply_changes(
    model: torch.nn.Module, packages: tuple[str, ...], names: Mapping[str, object], received: torch.Tensor
) -> int:
    """Set the values that loading changed at the source; return how many differed here."""
    rows = dict(zip(sorted(names), received.tolist(), strict=True))
    count = 0
    for holder, key, path in _holders(model, packages):
        changed, value = rows.get(path, (0.0, 0.0))
        own = holder[key]
        if changed and _is_plain(own) and float(own) != value:
            holder[key] = type(own)(value)
            count += 1
    return count


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


def _carrier(ordered: list[str]) -> str:
    return f"{VALUES}.{hashlib.sha256(chr(10).join(ordered).encode()).hexdigest()[:16]}"


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
