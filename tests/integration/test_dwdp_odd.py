"""Experts are found and waited for, however a model keeps and calls them."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

NAMES = [
    *("in two modules", "without forward", "reached", "around"),
    *("in the layer", "skipping", "convolved", "twice", "again", "same name"),
]


@pytest.mark.parametrize("name", NAMES)
def test_models_with_ways_of_their_own(nursery: Nursery, tmp_path: Path, name: str) -> None:
    nursery.run(tmp_path, "dwdp_odd:share", 2, name=name)
