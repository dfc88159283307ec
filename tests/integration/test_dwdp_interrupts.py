"""Who waits for another rank answers interrupts at once, and leaves the group as if it had not come."""

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Group, Nursery
from tests.support.waiting import wait_until

SOON = 20.0
"""Seconds, on a busy machine; without interrupts ranks wait for a minute."""


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit")])
@pytest.mark.parametrize(("point", "victim"), [("join", 0), ("join", 2), ("agree", 0), ("create", 2), ("stream", 0)])
def test_a_rank_that_waits_is_interrupted_and_all_meet_again(
    nursery: Nursery, tmp_path: Path, point: str, victim: int, number: signal.Signals, raised: str
) -> None:
    group = nursery.start(tmp_path, "dwdp_waiting:signalled", 3, point=point, victim=victim, again=True)
    _interrupt(group, victim, number)
    wait_until(lambda: group.reached("answered", victim), SOON)
    (tmp_path / "go").touch()
    for rank in range(3):
        wait_until(partial(group.told, rank), SOON)
    others = [] if point == "join" else ["RankLost"]
    assert group.results() == [[raised] if rank == victim else others for rank in range(3)]


def test_a_process_that_is_interrupted_ends_while_others_wait(nursery: Nursery, tmp_path: Path) -> None:
    group = nursery.start(tmp_path, "dwdp_waiting:signalled", 3, point="agree", victim=0, again=False, properly=True)
    _interrupt(group, 0, signal.SIGINT)
    wait_until(lambda: _state(group, 0) == "Z", SOON)
    (tmp_path / "go").touch()
    assert group.results() == [["KeyboardInterrupt"], ["RankLost"], ["RankLost"]]


def _interrupt(group: Group, victim: int, number: signal.Signals) -> None:
    wait_until(lambda: group.reached("hangs", 1))
    wait_until(lambda: group.reached("comes", victim))
    wait_until(lambda: _state(group, victim) == "S")
    group.signal(victim, number)


def _state(group: Group, rank: int) -> str:
    """Return what a rank's process does: S for sleeping, Z for one that has ended."""
    return Path(f"/proc/{group.pids[rank]}/stat").read_text().rpartition(")")[2].split()[0]
