"""Shared experts over a double of the CUDA driver: what they call, with which arguments, and what they leave."""

from collections.abc import Iterator

import pytest

from tests.support.dwdp_gpu_group import Group, group_of

OPTIONS = {"held": 10, "stride": 6}


@pytest.fixture(scope="module", params=["double", "strict"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with group_of(2, request.param, tmp_path_factory.mktemp("group")) as found:
        yield found


@pytest.mark.parametrize("slices", [False, True])
def test_outputs_are_those_of_the_model_with_all_experts(group: Group, slices: bool) -> None:
    for answer in group.run("equal", kind="toy", slices=slices, **OPTIONS):
        assert all(answer["right"])
        assert answer["restored"]


def test_ten_set_ups_leave_memory_where_it_was(group: Group) -> None:
    for answer in group.run("cycles", **OPTIONS):
        assert len(set(answer["left"])) == 1


def test_timed_events_tell_time(group: Group) -> None:
    assert all(0 <= answer["seconds"] < 1 for answer in group.run("timed"))
