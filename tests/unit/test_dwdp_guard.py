"""Modules and tensors that are guarded are not taken for a whole, and are as before when that ends."""

import copy
import pickle

import pytest
import torch
from torch import nn

from modelexpress.dwdp.guard import Guard
from modelexpress.errors import DwdpError


class Copied(nn.Linear):
    """A module with a way of its own to be copied: as an attribute."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        vars(self)["__deepcopy__"] = lambda memo: "a copy"


def test_guarding_twice_and_closing_twice() -> None:
    module, guard = Copied(), Guard()
    own = dict(vars(module))
    for _ in range(2):
        guard.modules([module])
        guard.tensor(module.weight, "weight")
    for _ in range(2):
        with pytest.raises(DwdpError, match="a copy would be wrong: a parameter of Copied shows"):
            copy.deepcopy(module)
        with pytest.raises(DwdpError, match="a copy would be wrong: weight shows"):
            pickle.dumps(module.weight)
        with pytest.raises(DwdpError, match="a state_dict of Copied would be wrong: a parameter of it shows"):
            module.state_dict()
        with pytest.raises(DwdpError, match="no state_dict can be loaded into Copied: a parameter of it shows"):
            module.load_state_dict({})
    assert copy.deepcopy(module.bias) is not None
    for _ in range(2):
        guard.close()
    assert vars(module) == own
    assert copy.deepcopy(module) == "a copy"  # type: ignore[comparison-overlap]
    assert torch.equal(copy.deepcopy(module.weight), module.weight)
    module.load_state_dict(module.state_dict())
