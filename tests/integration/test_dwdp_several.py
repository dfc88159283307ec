"""The streams, or threads, that a model runs on may change on the way: what is computed stays the same."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

KINDS = ["host", "double", "strict"]


@pytest.mark.parametrize("config", [(2, 3, 3), (3, 2, 2), (3, 4, 1, 1, True)])
@pytest.mark.parametrize("manner", ["between", "within", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_streams_that_change_between_layers_and_within_them(
    nursery: Nursery, tmp_path: Path, kind: str, manner: str, config: tuple[int, ...]
) -> None:
    told = nursery.run(tmp_path, "dwdp_several:streams", config[0], kind=kind, manner=manner, config=config, seed=7)
    for right in told:
        assert all(right)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_take_turns(nursery: Nursery, tmp_path: Path, kind: str) -> None:
    nursery.run(tmp_path, "dwdp_several:threads", 2, kind=kind)
