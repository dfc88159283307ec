"""Which rank holds which experts: all of them somewhere, and numbers that do not go together are refused in order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.dwdp import DwdpConfig
from modelexpress.dwdp.config import Place
from modelexpress.dwdp.partition import Partition
from modelexpress.errors import DwdpError, PartitionInvalid

SUGGESTED = re.compile(r"num_experts_per_worker=(\d+) and num_prefetch_experts=(\d+) would do$")


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """Return any that is valid, uniform or overlapping."""
    size, stride = draw(st.integers(2, 9)), draw(st.integers(1, 40))
    per_rank = stride + draw(st.one_of(st.just(0), st.integers(0, 60)))
    return Partition((size - 1) * stride + per_rank, size, per_rank, stride)


@given(partitions())
def test_every_expert_is_held_and_its_owner_is_the_lowest_rank_that_holds_it(partition: Partition) -> None:
    for expert in range(partition.num_experts):
        holders = [rank for rank in range(partition.size) if expert in partition.held(rank)]
        assert holders
        assert partition.owner(expert) == holders[0]
    assert partition.held(partition.size - 1).stop == partition.num_experts
    assert {len(partition.held(rank)) for rank in range(partition.size)} == {partition.per_rank}


@given(partitions())
def test_runs_cover_exactly_what_a_rank_lacks_each_from_its_owner(partition: Partition) -> None:
    for rank in range(partition.size):
        runs = partition.lacked(rank)
        fetched = [expert for run in runs for expert in range(run.start, run.stop)]
        assert fetched == [expert for expert in range(partition.num_experts) if expert not in partition.held(rank)]
        for run in runs:
            assert {partition.owner(expert) for expert in range(run.start, run.stop)} == {run.owner}
            assert run.owner != rank


@pytest.mark.parametrize(
    ("experts", "size", "per_rank", "stride"),
    [(256, 3, 86, 85), (256, 5, 52, 51), (256, 7, 40, 36), (72, 2, 40, 32), (72, 3, 26, 23), (72, 4, 24, 16)],
)
def test_overlapping_examples(experts: int, size: int, per_rank: int, stride: int) -> None:
    partition = DwdpConfig(size, per_rank, stride).partition(experts)
    assert (partition.num_experts, partition.size, partition.per_rank, partition.stride) == (
        *(experts, size),
        *(per_rank, stride),
    )


@pytest.mark.parametrize(
    ("per_rank", "stride", "reason"),
    [
        (0, 8, "both are at least 1"),  # also a stride above, and too few
        (4, 0, "both are at least 1"),  # also too few
        (-1, -1, "both are at least 1"),
        (3, 4, "a stride above the 3 experts a rank stores leaves gaps"),  # also too few
        (2, 8, "a stride above the 2 experts a rank stores leaves gaps"),  # also too many
        (3, 3, "the ranks reach expert 12 of 16: the rest is nowhere"),
        (5, 4, "the last rank reaches expert 17 of 16: it cannot be stored in part"),
    ],
)
def test_checks_come_in_order_and_their_suggestion_works(per_rank: int, stride: int, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        DwdpConfig(4, per_rank, stride).partition(16)
    assert isinstance(caught.value, PartitionInvalid)
    assert str(caught.value).startswith(
        f"16 experts over dwdp_size=4 with num_experts_per_worker={per_rank} and num_prefetch_experts={stride}: "
    )
    found = SUGGESTED.search(str(caught.value))
    assert found
    DwdpConfig(4, int(found[1]), int(found[2])).partition(16)


@given(st.integers(2, 300), st.integers(2, 9), st.integers(-2, 300), st.integers(-2, 300))
def test_whatever_is_refused_the_suggestion_works(experts: int, size: int, per_rank: int, stride: int) -> None:
    try:
        Partition(experts, size, per_rank, stride)
    except PartitionInvalid as error:
        if experts < size:
            found = re.search(r"set dwdp_size=(\d+) or less$", str(error))
            assert found
            DwdpConfig.spreading(experts, int(found[1])).partition(experts)
        else:
            found = SUGGESTED.search(str(error))
            assert found
            Partition(experts, size, int(found[1]), int(found[2]))


@given(st.integers(2, 300), st.integers(2, 9))
def test_spreading_stores_least(experts: int, size: int) -> None:
    if experts < size:
        with pytest.raises(PartitionInvalid, match=f"set dwdp_size={experts} or less"):
            DwdpConfig.spreading(experts, size)
        return
    found = DwdpConfig.spreading(experts, size).partition(experts)
    smaller = [
        (per_rank, stride)
        for per_rank in range(1, found.per_rank)
        for stride in range(1, per_rank + 1)
        if (size - 1) * stride + per_rank == experts
    ]
    assert not smaller


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("experts", [0, 1])
def test_what_cannot_be_spread_at_all_is_refused_without_a_suggestion_that_is_refused_too(
    experts: int, size: int
) -> None:
    with pytest.raises(PartitionInvalid) as caught:
        Partition(experts, size, 1, 1)
    found = re.search(r"dwdp_size=(\d+) or less", str(caught.value))
    if found:
        DwdpConfig(int(found[1]), 1, 1)


def test_what_was_loaded_is_all_or_what_a_rank_stores() -> None:
    partition = Partition(8, 2, 5, 3)
    partition.check_loaded("w", 5)
    partition.check_loaded("w", 8)
    with pytest.raises(PartitionInvalid, match=r"^w was loaded with 6 experts, but num_experts_per_worker=5 of 8: "):
        partition.check_loaded("w", 6)


@pytest.mark.parametrize(("size", "groups"), [(1, 1), (0, 1), (-1, 1), (2, 0), (2, -1)])
def test_a_group_has_two_ranks_at_least(size: int, groups: int) -> None:
    with pytest.raises(ValueError, match="at least") as caught:
        DwdpConfig(size, 4, 4, groups)
    assert isinstance(caught.value, DwdpError)


@pytest.mark.parametrize("size", [1, 0, -1, -200])
def test_experts_are_spread_over_two_ranks_at_least(size: int) -> None:
    with pytest.raises(PartitionInvalid, match=f"^dwdp_size={size}: a group has at least 2 ranks"):
        DwdpConfig.spreading(128, size)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 9))
def test_ranks_fill_groups_one_after_the_other(size: int, groups: int, spare: int) -> None:
    config = DwdpConfig(size, 1, 1, groups)
    world = groups * size + spare
    places = [config.place(rank, world) for rank in range(groups * size)]
    assert places == [Place(group, rank) for group in range(groups) for rank in range(size)]
    for rank in range(groups * size, world):
        with pytest.raises(PartitionInvalid, match=f"rank {rank} would be in group {rank // size}"):
            config.place(rank, world)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 30), st.data())
def test_what_is_suggested_for_groups_works(size: int, groups: int, world: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, world - 1))
    try:
        DwdpConfig(size, 1, 1, groups).place(rank, world)
    except PartitionInvalid as error:
        started = re.search(r"start (\d+)|or (\d+) ranks", str(error))
        ranks = int(started[1] or started[2]) if started else world
        chosen = re.search(r"set num_groups=(\d+)", str(error))
        if world < groups * size:
            assert DwdpConfig(size, 1, 1, groups).place(0, ranks) == Place(0, 0)
            assert not chosen or DwdpConfig(size, 1, 1, int(chosen[1])).place(0, world) == Place(0, 0)
        else:
            assert chosen
            assert DwdpConfig(size, 1, 1, int(chosen[1])).place(rank, ranks) == Place(rank // size, rank % size)
