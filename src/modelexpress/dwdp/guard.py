"""While experts are shared, nobody takes the model for a whole: most of what its parameters show is not theirs.

They look like tensors of all experts, but those of others are there from a wait to a release only. So what would
copy, save or fill all of them is refused: state dicts, deep copies and pickles by what is here, `publish` and `load`
by `memory.changing`. That a parameter is read by itself goes unnoticed.
"""

# mypy: untyped-calls-exclude=torch

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NoReturn

import torch
from torch import nn

from modelexpress.dwdp.model import ExpertLayer
from modelexpress.errors import DwdpError

REASON = "shows whatever experts were fetched last, as ranks share them: leave the DWDP block first, or do this before"
"""What is said of a tensor; it goes on after its name."""

_COPIERS = ("__deepcopy__", "__reduce_ex__")
"""What `copy` and `pickle` ask an object for, before its class."""


class Guard:
    """Refuses what takes modules and tensors as a whole, until it is closed."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._guarded: set[int] = set()

    def modules(self, modules: Sequence[nn.Module]) -> None:
        """Refuse state dicts of modules, to take and to load, and copies of them."""
        for module in modules:
            if self._is_new(module):
                self._undo.callback(module.register_state_dict_pre_hook(_refuse_state_dict).remove)
                self._undo.callback(module.register_load_state_dict_pre_hook(_refuse_load).remove)
                self._refuse_copies(module)

    def tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Refuse deep copies and pickles of one tensor."""
        if self._is_new(tensor):
            self._refuse_copies(tensor, name)

    def close(self) -> None:
        """Let everything be as it was before. Closing twice is allowed."""
        self._guarded.clear()
        self._undo.close()

    def _is_new(self, thing: object) -> bool:
        new = id(thing) not in self._guarded
        self._guarded.add(id(thing))
        return new

    def _refuse_copies(self, thing: nn.Module | torch.Tensor, name: str = "") -> None:
        own = vars(thing)
        for copier in _COPIERS:
            before = {copier: own[copier]} if copier in own else {}
            own[copier] = partial(_refuse_copy, name or f"a parameter of {type(thing).__name__}")
            # In this order: what was there before is put back after what is here now has gone.
            self._undo.callback(own.update, before)
            self._undo.callback(own.pop, copier, None)


def holders(model: nn.Module, layers: Sequence[ExpertLayer]) -> list[nn.Module]:
    """Return the modules that hold shared weights, and those around them, up to the model itself."""
    holding = {id(weight.module) for layer in layers for weight in layer.weights}
    found = {
        id(module): module
        for root in (model, *(layer.block for layer in layers))
        for module in root.modules()
        if any(id(inner) in holding for inner in module.modules())
    }
    return list(found.values())


def _refuse_state_dict(module: nn.Module, *_: object) -> None:
    raise DwdpError(f"a state_dict of {type(module).__name__} would be wrong: a parameter of it {REASON}")


def _refuse_load(module: nn.Module, *_: object) -> None:
    raise DwdpError(f"no state_dict can be loaded into {type(module).__name__}: a parameter of it {REASON}")


def _refuse_copy(name: str, *_: object) -> NoReturn:
    raise DwdpError(f"a copy would be wrong: {name} {REASON}")
