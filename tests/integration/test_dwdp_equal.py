"""What ranks that share experts compute is, to the bit, what each would compute with all experts."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

UNEVEN: list[tuple[int, ...]] = [(0, 7), (1, 33), (1, 57, 3), (0, 11), (1, 24, 1, True), (1, 41, 4)]
"""Experts that are no whole pages, layers of different sizes, dense layers between, chunks, an expert for all."""


def _uneven(experts: int) -> list[tuple[int, ...]]:
    return [(experts * count, *rest) for count, *rest in [UNEVEN[1], *UNEVEN]]


@pytest.mark.parametrize("loaded", ["part", "all"])
@pytest.mark.parametrize(
    ("experts", "config"),
    [
        (8, (2, 4, 4)),
        (8, (2, 5, 3)),
        (12, (3, 4, 4)),
        (11, (3, 5, 3)),
        (8, (4, 2, 2)),
        (11, (4, 5, 2)),
        (11, (4, 5, 2, 1, True)),
    ],
)
def test_results_are_those_of_the_whole_model(
    nursery: Nursery, tmp_path: Path, experts: int, config: tuple[int, ...], loaded: str
) -> None:
    nursery.run(tmp_path, "dwdp_equal:toy", config[0], config=config, hidden=40, shapes=_uneven(experts), loaded=loaded)


def test_some_ranks_load_all_experts_and_others_their_own(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_equal:toy", 3, config=(3, 5, 3), hidden=200, shapes=[(11, 33)] * 3, loaded="mixed")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_few_layers(nursery: Nursery, tmp_path: Path, layers: int) -> None:
    nursery.run(tmp_path, "dwdp_equal:toy", 2, config=(2, 4, 4), hidden=40, shapes=[(8, 33)] * layers)


def test_units_of_2_mib(nursery: Nursery, tmp_path: Path) -> None:
    shapes = [(7, 544), (7, 600, 2), (7, 544)]
    nursery.run(tmp_path, "dwdp_equal:toy", 3, config=(3, 3, 2), hidden=520, shapes=shapes, granularity=2 << 20)


def test_two_groups_share_each_for_itself(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_equal:toy", 4, config=(2, 5, 3, 2), hidden=40, shapes=_uneven(8))


@pytest.mark.parametrize("loaded", ["part", "all"])
@pytest.mark.parametrize("config", [(2, 4, 4), (3, 4, 2)])
def test_8_bit_floats_with_scales_for_experts_and_blocks(
    nursery: Nursery, tmp_path: Path, config: tuple[int, ...], loaded: str
) -> None:
    nursery.run(tmp_path, "dwdp_equal:eight_bits", config[0], config=config, hidden=68, experts=8, loaded=loaded)
