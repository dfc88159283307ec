"""Imported when Python starts: lets torchvision be imported, whose compiled operators have no build without CUDA.

Its Python part insists that two operators are declared. They are, as names, and nothing calls them.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OPERATORS = (
    "nms(Tensor boxes, Tensor scores, float threshold) -> Tensor",
    "qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor",
)


_declared: list[object] = []
"""What keeps the operators declared."""


class _BeforeTorchvision(MetaPathFinder):
    """Declares the operators just before torchvision is imported, so that no other program imports torch."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing: the module is found by those who come after."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    library: Any = torch.library
    fragment = library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        fragment.define(operator)
    _declared.append(fragment)


sys.meta_path.insert(0, _BeforeTorchvision())
