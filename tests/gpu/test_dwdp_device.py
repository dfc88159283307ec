"""Ranks on GPUs share experts: the same outputs to the bit, in the right order, and nothing is left.

One process a rank; every process sees all GPUs, and each has a GPU of its own. DWDP_RANKS=4 makes groups of up to four
where there are fewer GPUs, so that some have two ranks. With DWDP_DEVICE=cpu the same runs on the host, with three.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.dwdp_gpu_group import Group, group_of

DEVICE = os.environ.get("DWDP_DEVICE", "cuda")
DEVICES = torch.cuda.device_count() if DEVICE == "cuda" else 3
MOST = int(os.environ.get("DWDP_RANKS", min(DEVICES, 4)))
SIZES = range(2, MOST + 1)
PARTITIONS = {2: ((8, 8), (10, 6)), 3: ((6, 5), (8, 4)), 4: ((4, 4), (7, 3))}
"""For each number of ranks: experts a rank holds, and from one rank's first to the next one's."""
MEBIBYTE = 1 << 20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICES < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[Group, ExitStack]]]:
    found: dict[int, tuple[Group, ExitStack]] = {}
    yield found
    for _, stack in found.values():
        stack.close()


@pytest.fixture
def ask(groups: dict[int, tuple[Group, ExitStack]], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Let a group do a case; a group that failed is started anew for the next test."""

    def run(ranks: int, case: str, **options: Any) -> list[dict[str, Any]]:
        if ranks not in groups:
            stack = ExitStack()
            groups[ranks] = (stack.enter_context(group_of(ranks, DEVICE, tmp_path)), stack)
        group, stack = groups[ranks]
        held, stride = PARTITIONS[ranks][0]
        try:
            return group.run(case, **{"held": held, "stride": stride, **options})
        except BaseException:  # whatever it was, these ranks are out of step
            del groups[ranks]
            stack.close()
            raise

    return run


Ask = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kind": "toy"}, id="toy"),
        pytest.param({"kind": "toy", "chunks": 3}, id="chunks"),
        pytest.param({"kind": "toy", "cut": True}, id="loaded-in-part"),
        pytest.param({"kind": "toy", "slices": True}, id="slices"),
        pytest.param({"kind": "toy", "side": True}, id="side-stream"),
        pytest.param({"kind": "fp8"}, id="fp8"),
        pytest.param({"kind": "fp8", "cut": True}, id="fp8-loaded-in-part"),
        pytest.param({"kind": "qwen3"}, id="qwen3"),
        pytest.param({"kind": "qwen3", "cut": True}, id="qwen3-loaded-in-part"),
    ],
)
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "overlapping"])
@pytest.mark.parametrize("ranks", SIZES)
def test_outputs_are_those_of_the_model_with_all_experts(
    ask: Ask, ranks: int, uniform: bool, options: dict[str, Any]
) -> None:
    held, stride = PARTITIONS[ranks][0 if uniform else 1]
    for answer in ask(ranks, "equal", held=held, stride=stride, **options):
        assert all(answer["right"])
        assert answer["finite"]
        assert answer["restored"]


@pytest.mark.parametrize("ranks", SIZES)
def test_late_copies_that_spoil_their_destination_do_not_matter(ask: Ask, ranks: int) -> None:
    assert all(all(answer["right"]) for answer in ask(ranks, "ordering"))


@pytest.mark.parametrize("dropped", ["prefetched", "consumed"])
def test_without_a_wait_outputs_are_wrong(ask: Ask, dropped: str) -> None:
    if DEVICE == "cpu" and dropped == "consumed":
        pytest.skip("on the host the caller has consumed before it says so")
    answers = ask(2, "ordering", dropped=dropped)
    assert not all(all(answer["right"]) for answer in answers)


def test_a_forward_that_broke_off_does_not_spoil_the_next(ask: Ask) -> None:
    for answer in ask(2, "broken_off"):
        assert answer["broken"]
        assert all(answer["right"])


def test_ten_set_ups_leave_memory_where_it_was(ask: Ask) -> None:
    for answer in ask(2, "cycles"):
        assert abs(answer["left"][-1] - answer["left"][1]) <= 2 * MEBIBYTE, answer["left"]


@pytest.mark.skipif(DEVICE == "cpu", reason="of a device")
@pytest.mark.parametrize("ranks", range(2, min(MOST, DEVICES) + 1))
def test_a_rank_takes_its_experts_and_two_slots(ask: Ask, ranks: int) -> None:
    for answer in ask(ranks, "memory"):
        assert answer["taken"] <= answer["experts"] * PARTITIONS[ranks][0][0] / 16 + 2 * answer["slot"] + 64 * MEBIBYTE


@pytest.mark.skipif(DEVICE == "cpu", reason="of a device")
def test_a_model_on_another_device_than_the_current_one_is_refused(ask: Ask) -> None:
    for answer in ask(2, "elsewhere"):
        assert "torch.cuda.set_device" in answer["refused"]
        assert answer["restored"]


def test_timed_events_tell_time(ask: Ask) -> None:
    assert all(0 <= answer["seconds"] < 1 for answer in ask(2, "timed"))


@pytest.mark.parametrize("ranks", SIZES)
def test_a_killed_rank_is_missed_and_the_others_end_cleanly(ranks: int, tmp_path: Path) -> None:
    held, stride = PARTITIONS[ranks][0]
    with group_of(ranks, DEVICE, tmp_path) as group:
        answers = group.run("killed", survivors=ranks - 1, held=held, stride=stride)
        for answer in answers:
            assert answer["lost"]
            assert answer["seconds"] < 20
            assert answer["restored"]
        assert group.leave(ranks - 1) == [0] * (ranks - 1)
