"""Where the bytes of a weight lie: by the formulas, and so that each is in own memory, at an edge, or in a slot."""

import math

from hypothesis import given
from hypothesis import strategies as st

from modelexpress.dwdp.layout import PAGE_UNITS, WeightLayout
from modelexpress.dwdp.partition import Partition
from modelexpress.dwdp.prefetch import in_turn


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Partition, list[WeightLayout]]:
    """Return a partition, and the layout on each of its ranks."""
    size, stride = draw(st.integers(2, 5)), draw(st.integers(1, 12))
    per_rank = stride + draw(st.integers(0, 12))
    partition = Partition((size - 1) * stride + per_rank, size, per_rank, stride)
    granularity = draw(st.sampled_from([16, 4096, 2 << 20]))
    expert = draw(st.one_of(st.integers(1, 4 * granularity), st.integers(1, 4).map(lambda n: n * granularity)))
    return partition, [
        WeightLayout(partition.num_experts, partition.held(rank), expert, granularity) for rank in range(size)
    ]


@given(layouts())
def test_sizes_are_those_of_the_formulas(found: tuple[Partition, list[WeightLayout]]) -> None:
    partition, ranks = found
    for rank, layout in enumerate(ranks):
        unit, size = layout.granularity, layout.expert_bytes
        start, end = rank * partition.stride, rank * partition.stride + partition.per_rank
        page_start = math.floor(start * size / unit) * unit
        page_end = math.ceil(end * size / unit) * unit
        page = 8 * unit
        pre = math.ceil(page_start / page) * page
        post_raw = math.ceil(partition.num_experts * size / unit) * unit - page_end
        assert (layout.own_start, layout.own_stop, layout.own_bytes) == (page_start, page_end, page_end - page_start)
        assert (layout.leading_edge, layout.trailing_edge) == (start * size - page_start, page_end - end * size)
        assert (layout.pre_bytes, layout.padding) == (pre, pre - page_start)
        assert layout.post_bytes == math.ceil(post_raw / page) * page
        assert layout.nbytes == layout.pre_bytes + layout.own_bytes + layout.post_bytes
        assert layout.page_bytes == page == PAGE_UNITS * unit
        assert layout.pages * page == layout.pre_bytes + layout.post_bytes
        assert layout.tensor_bytes == partition.num_experts * size


@given(layouts())
def test_the_full_tensor_is_within_the_range_and_own_memory_where_its_experts_are(
    found: tuple[Partition, list[WeightLayout]],
) -> None:
    for layout in found[1]:
        assert layout.padding >= 0
        assert layout.padding + layout.tensor_bytes <= layout.nbytes
        assert layout.padding + layout.own_start == layout.pre_bytes  # the full tensor and own memory fit together
        assert layout.nbytes % layout.granularity == layout.pre_bytes % layout.granularity == 0
        assert 0 <= layout.leading_edge < layout.granularity
        assert 0 <= layout.trailing_edge < layout.granularity


@given(layouts())
def test_slots_edges_and_what_is_held_are_the_whole_tensor(found: tuple[Partition, list[WeightLayout]]) -> None:
    partition, ranks = found
    for rank, layout in enumerate(ranks):
        held = partition.held(rank)
        parts = [range(held.start * layout.expert_bytes, held.stop * layout.expert_bytes)]
        for _, start, stop in partition.lacked(rank):
            outside, edges = layout.outside(start, stop), layout.edges(start, stop)
            assert sum(map(len, (*outside, *edges))) == (stop - start) * layout.expert_bytes
            assert all(part.stop <= layout.own_start or part.start >= layout.own_stop for part in outside)
            assert all(layout.own_start <= part.start and part.stop <= layout.own_stop for part in edges)
            parts += [*outside, *edges]
        parts.sort(key=lambda part: part.start)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]  # no gap, nothing twice
        assert parts[-1].stop == layout.tensor_bytes


@given(layouts())
def test_every_byte_that_is_fetched_is_within_its_owners_memory(found: tuple[Partition, list[WeightLayout]]) -> None:
    partition, ranks = found
    for rank, layout in enumerate(ranks):
        for owner, start, stop in partition.lacked(rank):
            theirs = ranks[owner]
            for part in (*layout.outside(start, stop), *layout.edges(start, stop)):
                # Not at an edge of theirs: what is there is copied too, and perhaps not yet.
                assert theirs.own_start + theirs.leading_edge <= part.start
                assert part.stop <= theirs.own_stop - theirs.trailing_edge


COPIES = st.lists(st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9999), st.integers(1, 70)), max_size=5))


@given(COPIES, st.integers(1, 40))
def test_slices_are_the_copies_from_each_peer_in_turn(lanes: list[list[tuple[int, int, int]]], size: int) -> None:
    found = in_turn(lanes, size)
    assert all(0 < nbytes <= size for _, _, nbytes in found)
    moved = sorted((to + at, of + at) for to, of, nbytes in found for at in range(nbytes))
    assert moved == sorted((to + at, of + at) for lane in lanes for to, of, nbytes in lane for at in range(nbytes))


def test_no_peer_gets_a_second_turn_before_each_had_its_first() -> None:
    lanes = [[(0, 1000, 10)], [(10, 2000, 4)], [], [(14, 3000, 3), (17, 3100, 5)]]
    assert in_turn(lanes, 4) == [
        *[(0, 1000, 4), (10, 2000, 4), (14, 3000, 3)],
        *[(4, 1004, 4), (17, 3100, 4)],
        *[(8, 1008, 2), (21, 3104, 1)],
    ]
