"""Cases of interrupts that come while a rank waits for another one, which is late."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from modelexpress.dwdp import DwdpManager
from modelexpress.errors import RankLost
from tests.support.dwdp_life import Meddler, Possessions, Sharing
from tests.support.dwdp_nursery import Rank
from tests.support.waiting import wait_until

DEADLINE = 60.0
"""Of set-up: what ends long before does not wait for it."""


def signalled(rank: Rank, point: str, victim: int, again: bool) -> list[str]:
    """Wait for rank 1, which is late; return what this rank was told.

    Args:
        rank: This one.
        point: Where rank 1 waits for a file called "go".
        victim: Rank that the test sends a signal.
        again: Whether who was told something tries again, until it is well.
    """
    signal.signal(signal.SIGTERM, _exit)
    sharing = Sharing(rank)
    sharing.once()
    before = Possessions.now()
    late = _late(rank) if rank.number == 1 else lambda: None
    told = list[str]()
    while again or not told:
        try:
            if rank.number == victim:
                rank.reached("comes")
            _set_up(sharing, point, late)
            break
        except (KeyboardInterrupt, SystemExit, RankLost) as error:
            told.append(type(error).__name__)
            del error
        sharing.restored()
        rank.reached("answered")
    if again:
        before.check_not_exceeded()
    return told


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(number)


def _late(rank: Rank) -> Callable[[], None]:
    def wait() -> None:
        rank.reached("hangs")
        wait_until((rank.folder / "go").exists, DEADLINE)

    return wait


def _set_up(sharing: Sharing, point: str, late: Callable[[], None]) -> None:
    """Set up, compute, and give back; be late at a point."""
    if point == "join":
        late()
    machine = Meddler(late, 0, point)
    try:
        with DwdpManager(sharing.config, machine=machine, deadline=DEADLINE) as manager:
            if point == "agree":
                late()
            manager.add_all_layers()
            manager.setup(sharing.model)
    finally:
        machine.compute().close()
