"""While its experts are shared nobody takes a model for a whole; an engine's own modules show what the model's do."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

REMEDY = "leave the DWDP block first, or do this before"
MOVED = {"publish", "publish one", "publish rows", "load", "load by name", "plan"}


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_would_take_the_model_for_a_whole_is_refused(nursery: Nursery, tmp_path: Path, by_hand: bool) -> None:
    for told in nursery.run(tmp_path, "dwdp_whole:refused", 2, by_hand=by_hand):
        for name, (error, message) in told.items():
            assert (name, error) == (name, "UnsupportedModel" if name in MOVED else "DwdpError"), message
            assert message.endswith(REMEDY), (name, message)
        assert told["publish"][1].startswith("tensor 'layers.0.experts.up' shows whatever experts were fetched last")
        assert told["state_dict of what is around"][1].startswith("a state_dict of Toy would be wrong: ")
        assert "1: experts.up shows whatever" in told["save of a parameter"][1]


def test_what_was_published_before_stays_what_it_was(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_whole:published_before", 2)


@pytest.mark.parametrize("loaded", ["part", "all"])
def test_modules_of_an_engines_own_show_all_experts_of_all_tensors(
    nursery: Nursery, tmp_path: Path, loaded: str
) -> None:
    for told in nursery.run(tmp_path, "dwdp_whole:modules_of_ones_own", 2, loaded=loaded):
        assert len(told) == 3
        assert all(message.endswith(REMEDY) for message in told), told


def test_parameters_that_are_alike_are_not_taken_for_each_other(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_whole:alike", 2):
        assert told == (
            "0: up.weight and down.weight are alike, and the module's own weight may be any of them: compute with the "
            "model's modules, and call wait instead"
        )
