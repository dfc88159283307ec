"""Whether a model that has been loaded can be anything but what its checkpoint gave: the engine may have changed it.

Steps that change weights after loading have many names, and hang on modules, on objects below them such as
`quant_method`, and on the parameters. So they are not looked for: only what torch and Python bring has none for sure.
"""

from collections.abc import Iterator
from typing import Any

import torch

_WITHOUT_STEPS = ("builtins", "collections", "torch")
"""Packages none of whose objects changes weights after loading by itself."""


def what_may_change(model: torch.nn.Module) -> str | None:
    """Return what of a model may have changed its weights after loading; None where nothing can have.

    Args:
        model: All of its modules are looked at, and all that hangs on them.
    """
    for path, module in model.named_modules():
        hung = {name: value for name, value in vars(module).items() if name != "_modules"}
        for name, value in {"": module, **hung}.items():
            for part in _parts(value):
                if not _is_harmless(part):
                    place = ".".join(filter(None, (path, name)))
                    return f"{_kind_of(part)} at '{place}'" if place else f"{_kind_of(part)}, the model itself,"
    return None


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value, what is in it where it is one of Python's containers, and what hangs on it if it is a tensor."""
    yield value
    inner = vars(value) if isinstance(value, torch.Tensor) else value
    if isinstance(inner, dict | list | tuple | set | frozenset):
        for part in inner.values() if isinstance(inner, dict) else inner:
            yield from _parts(part)


def _is_harmless(part: Any) -> bool:
    # What can be called by itself, such as a function, says where it was written; everything else, its class does.
    said = getattr(part, "__module__", None) or type(part).__module__
    return str(said).split(".")[0] in _WITHOUT_STEPS


def _kind_of(part: Any) -> str:
    return getattr(part, "__qualname__", type(part).__qualname__)
