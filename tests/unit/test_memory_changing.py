"""Ranges of memory whose content changes: found by any byte that a tensor has in them, and by no other."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from modelexpress.errors import UnsupportedModel
from modelexpress.memory.changing import announce, anything_changes, first_changing, withdraw
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.target import Target


@pytest.fixture
def room() -> Iterator[torch.Tensor]:
    """100 bytes, of which those from 30 to 39 and from 60 to 69 change."""
    found = torch.zeros(100, dtype=torch.uint8)
    for start in (60, 30):
        announce(found.data_ptr() + start, 10, f"changes from {start} on")
    yield found
    for start in (60, 30, 30):
        withdraw(found.data_ptr() + start)
    assert not anything_changes()
    assert first_changing(np.array([found.data_ptr()], np.uint64), np.array([100])) is None


def test_every_block_is_found_that_reaches_into_one(room: torch.Tensor) -> None:
    changing = {*range(30, 40), *range(60, 70)}
    for start in range(100):
        for end in range(start, 101):
            blocks = np.array([0, room.data_ptr() + start], np.uint64), np.array([1, end - start])
            found = first_changing(*blocks)
            assert (found is not None) == bool(changing & {*range(start, end)}), (start, end)
            assert found is None or (found[0] == 1 and found[1] in ("changes from 30 on", "changes from 60 on"))


def test_the_first_block_is_named(room: torch.Tensor) -> None:
    starts = np.array([room.data_ptr() + start for start in (0, 65, 35)], np.uint64)
    assert first_changing(starts, np.array([5, 1, 1])) == (1, "changes from 60 on")


@pytest.mark.parametrize("use", [catalogue, Target])
def test_tensors_there_are_neither_offered_nor_filled(room: torch.Tensor, use: type[Target]) -> None:
    quiet = {"first": room[:30], "gap": room[40:60], "none": room[30:30], "meta": torch.empty(3, device="meta")}
    use(quiet)
    with pytest.raises(UnsupportedModel, match=r"^tensor 'steps' changes from 30 on$"):
        use(quiet | {"steps": room[10::10][:3]})  # its last element is there


def test_gaps_between_elements_count(room: torch.Tensor) -> None:
    # Nothing of it is there, but it is not worth telling from what is: nobody takes such a tensor on purpose.
    with pytest.raises(UnsupportedModel, match="changes from 30 on"):
        catalogue({"around": room[29:42:11]})
