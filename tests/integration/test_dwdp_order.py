"""Events keep copies and computation in order: late copies into poison are no harm, unless one event is left out."""

from pathlib import Path

import pytest

from tests.support.dwdp_hostile import Missing
from tests.support.dwdp_nursery import Nursery

CONFIGS = [(2, 3, 3), (3, 2, 2), (3, 4, 1), (3, 2, 2, 1, True)]


@pytest.mark.parametrize("seed", [0, 100])
@pytest.mark.parametrize("config", CONFIGS)
def test_late_copies_into_poison_change_nothing(
    nursery: Nursery, tmp_path: Path, config: tuple[int, ...], seed: int
) -> None:
    for right in nursery.run(tmp_path, "dwdp_order:run", config[0], config=config, missing="NOTHING", seed=seed):
        assert all(right)


@pytest.mark.parametrize("config", [(2, 3, 3), (3, 2, 2, 1, True)])
@pytest.mark.parametrize("missing", [one for one in Missing if one is not Missing.NOTHING])
def test_without_one_of_the_waits_results_are_wrong(
    nursery: Nursery, tmp_path: Path, missing: Missing, config: tuple[int, ...]
) -> None:
    for right in nursery.run(tmp_path, "dwdp_order:run", config[0], config=config, missing=missing.name):
        assert not all(right)


@pytest.mark.parametrize(("ranks", "config"), [(2, (2, 3, 3)), (3, (3, 2, 2))])
def test_a_forward_that_breaks_off_leaves_the_next_one_right(
    nursery: Nursery, tmp_path: Path, ranks: int, config: tuple[int, int, int]
) -> None:
    breaks = [(layer, when) for layer in (0, 1, 2, 4) for when in ("before", "after")]
    for right in nursery.run(tmp_path, "dwdp_order:run", ranks, config=config, missing="NOTHING", breaks=breaks):
        assert all(right)
