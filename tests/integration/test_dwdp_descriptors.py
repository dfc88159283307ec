"""Descriptors that do not arrive: every rank is told, in time and in words, and nobody keeps anything."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

NO_MORE_FILES = "DwdpError: this process may open no more files: raise the limit (`ulimit -n`)"
WHILE = "while memory was being exchanged: its own log says why"


@pytest.mark.parametrize("loaded", ["part", "all"])
def test_a_rank_that_may_open_too_few_files_says_so_and_the_others_end_with_it(
    nursery: Nursery, tmp_path: Path, loaded: str
) -> None:
    first, second, third = nursery.run(tmp_path, "dwdp_descriptors:starved", 3, loaded=loaded)
    assert set(second) == {NO_MORE_FILES}
    assert set(first) == set(third) == {"RankLost"}
    # For 2 layers of 2 weights: what is made, exported, and received of each peer, one by one.
    assert len(first) == len(second) == len(third) > 12


@pytest.mark.parametrize("files", range(7))
def test_what_arrives_in_part_is_closed(nursery: Nursery, tmp_path: Path, files: int) -> None:
    first, second = nursery.run(tmp_path, "dwdp_descriptors:swapped", 2, counts=[5, 5], files=files)
    assert first == ""
    assert second == (NO_MORE_FILES if files < 5 else "")


def test_more_descriptors_than_a_message_takes(nursery: Nursery, tmp_path: Path) -> None:
    assert nursery.run(tmp_path, "dwdp_descriptors:swapped", 3, counts=[201, 201, 201]) == [""] * 3


@pytest.mark.parametrize(("announced", "sent"), [(1, 3), (1, 200), (3, 1)])
def test_another_number_than_announced(nursery: Nursery, tmp_path: Path, announced: int, sent: int) -> None:
    assert nursery.run(tmp_path, "dwdp_descriptors:swapped", 2, counts=[announced, sent]) == [
        f"RankLost: rank 1 of the group sent {sent} descriptors instead of {announced} {WHILE}",
        f"RankLost: rank 0 of the group sent {announced} descriptors instead of {sent} {WHILE}",
    ]


@pytest.mark.parametrize("announced", [1, 199, 200])
def test_more_than_there_is_room_for_is_not_taken_for_a_lack_of_files(
    nursery: Nursery, tmp_path: Path, announced: int
) -> None:
    first, second = nursery.run(tmp_path, "dwdp_descriptors:swapped", 2, counts=[announced, 253], most=253)
    assert first == f"RankLost: rank 1 of the group sent more than 200 descriptors instead of {announced} {WHILE}"
    assert second == f"RankLost: rank 0 of the group sent {announced} descriptors instead of 253 {WHILE}"


def test_more_descriptors_on_the_way_than_a_user_may_have(nursery: Nursery, tmp_path: Path) -> None:
    first, second, third = nursery.run(tmp_path, "dwdp_descriptors:on_the_way", 3, descriptors=190)
    assert second == (
        "DwdpError: more descriptors of this user are on their way between processes than a process may open files: "
        "raise the limit (`ulimit -n`)"
    )
    assert first.startswith("RankLost")
    assert third.startswith("RankLost")
