"""Set-up is all or nothing, tear-down gives everything back, and ranks that are lost are told of in time."""

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery
from tests.support.waiting import wait_until

CALLS = ["create", "reserve", "map", "allow", "export", "import", "stream", "event"]


def test_ten_times_leave_everything_where_it_was(nursery: Nursery, tmp_path: Path) -> None:
    for growth in nursery.run(tmp_path, "dwdp_life:repeated", 2, times=10, properly=True):
        assert growth < 8 << 20


@pytest.mark.parametrize("loaded", ["part", "all"])
@pytest.mark.parametrize("only", CALLS)
def test_where_the_device_refuses_all_ranks_take_everything_back(
    nursery: Nursery, tmp_path: Path, only: str, loaded: str
) -> None:
    first, second, third = nursery.run(tmp_path, "dwdp_life:refused", 3, only=only, loaded=loaded)
    assert second
    assert set(second) == {"DeviceError: meddled"}
    assert set(first) == set(third) == {"RankLost"}
    assert len(first) == len(second) == len(third)


@pytest.mark.parametrize("only", CALLS)
def test_where_a_user_interrupts_all_ranks_take_everything_back(nursery: Nursery, tmp_path: Path, only: str) -> None:
    told = nursery.run(tmp_path, "dwdp_life:refused", 2, only=only, loaded="all", action="interrupt")
    assert [set(one) for one in told] == [{"RankLost"}, {"KeyboardInterrupt: "}]


def test_an_interrupt_at_any_line_leaves_nothing_behind(nursery: Nursery, tmp_path: Path) -> None:
    first, second = nursery.run(tmp_path, "dwdp_life:interrupted", 2, stride=61)
    assert first == second > 30


@pytest.mark.parametrize("point", ["join", "agree", "create", "import", "stream"])
def test_ranks_that_are_killed_in_set_up(nursery: Nursery, tmp_path: Path, point: str) -> None:
    deadline = 2 if point == "join" else 40  # nothing tells of a rank that nobody has met
    group = nursery.start(tmp_path, "dwdp_life:lost_in_set_up", 3, point=point, deadline=deadline, properly=True)
    wait_until(lambda: group.reached("hangs", 1))
    group.signal(1, signal.SIGKILL)
    first, victim, third = group.ended()
    assert victim.code == -signal.SIGKILL
    for other in (first, third):
        assert (other.code, other.error) == (0, ""), other.trace
        assert other.result


@pytest.mark.parametrize("point", ["join", "agree", "create", "import", "stream"])
def test_ranks_that_stop_in_set_up(nursery: Nursery, tmp_path: Path, point: str) -> None:
    group = nursery.start(tmp_path, "dwdp_life:lost_in_set_up", 3, point=point, deadline=2)
    wait_until(lambda: group.reached("hangs", 1))
    group.signal(1, signal.SIGSTOP)
    for rank in (0, 2):
        wait_until(partial(group.told, rank), 30)
    group.signal(1, signal.SIGKILL)
    first, _, third = group.ended()
    for other in (first, third):
        assert (other.code, other.error) == (0, ""), other.trace
        assert other.result


def test_ranks_that_are_killed_in_a_forward(nursery: Nursery, tmp_path: Path) -> None:
    group = nursery.start(tmp_path, "dwdp_life:lost_in_forward", 3, properly=True)
    for rank in range(3):
        wait_until(partial(group.reached, "computes", rank), 30)
    group.signal(1, signal.SIGKILL)
    first, _, third = group.ended()
    for other in (first, third):
        assert (other.code, other.error) == (0, ""), other.trace
        assert other.result == "rank 1 of the group ended: leave the block and start all of its ranks"


def test_a_rank_that_leaves_is_not_missed(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_life:leaves", 3, properly=True)


def test_a_process_shares_one_model_at_a_time(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_life:one_at_a_time", 2):
        assert told == "this process shares the experts of a model already: leave that block first"


def test_giving_back_twice(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_life:cleaned_up", 2)


def test_a_parameter_that_has_no_room_any_more_is_empty_and_the_rest_is_given_back(
    nursery: Nursery, tmp_path: Path
) -> None:
    for told in nursery.run(tmp_path, "dwdp_life:without_room", 2):
        assert told == (
            "layers.2: experts.down was given back, but there is no room for 4 experts of its own: it is empty now; "
            "load it again (out of memory)"
        )


def test_an_engine_drives_the_manager(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_life:in_order", 3, config=(3, 2, 2))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_memory_is_that_of_a_ranks_experts_and_two_slots(nursery: Nursery, tmp_path: Path, world: int) -> None:
    per_rank = {2: 4, 3: 2, 4: 3}[world]
    pages = 8 * 4096
    for rank in nursery.run(tmp_path, "dwdp_life:memory", world, inner=2000, layers=6):
        own = rank["experts"] * per_rank // 6
        slots = 2 * rank["layer"] * (6 - per_rank) // 6
        # For each of 2 weights: in a slot a page at each side, and own memory that begins and ends within a unit.
        assert own + slots <= rank["kept"] + 4096 * 6 * 2 * 2 <= own + slots + 2 * 2 * 2 * pages + 6 * 2 * 4 * 4096


@pytest.mark.parametrize("loaded", ["part", "all"])
def test_set_up_takes_one_weight_more_than_the_model_and_two_slots(
    nursery: Nursery, tmp_path: Path, loaded: str
) -> None:
    for rank in nursery.run(tmp_path, "dwdp_peak:peak", 3, loaded=loaded):
        assert rank["weights"] == 6
        # What a rank loaded of a weight, or less, is in own memory that begins and ends within a unit of 4096 bytes.
        assert rank["largest"] <= rank["more"] < rank["largest"] + 6 * 2 * 4096 < 2 * rank["largest"]
