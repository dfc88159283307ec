"""What cannot be shared is refused on all ranks, with the reason; groups of ranks come from torch or from MPI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

BOTH = [
    ("experts apart", "ExpertsUnsupported", "0.experts keeps 6 experts apart, in modules of their own: stack them"),
    ("no gate", "ExpertsUnsupported", "no layer with a gate and stacked experts"),
    ("dense", "ExpertsUnsupported", "Sequential has no layer with a gate and stacked experts"),
    ("wrong number", "ExpertsUnsupported", "fit num_experts_per_worker=4: layers.0.experts holds up (3, 33, 40)"),
    ("number of experts", "PartitionInvalid", "num_experts_per_worker=4 and num_prefetch_experts=4 would do"),
    ("pipeline", "ExpertsUnsupported", "'layers.0'"),
    ("fewer layers", "ExpertsUnsupported", "only one of them has layers.2: experts.up"),
    ("inner size", "ExpertsUnsupported", "(34, 40)"),
    ("type of numbers", "ExpertsUnsupported", "torch.bfloat16"),
    ("load balancing", "ExpertsUnsupported", "layers.1 balances load by moving experts between ranks"),
    ("load balancer", "ExpertsUnsupported", "layers.1 balances load by moving experts between ranks"),
    ("not contiguous", "ExpertsUnsupported", "stride (40, 240, 1)): make it contiguous"),
    ("without memory", "ExpertsUnsupported", "layers.1: experts.up has no memory yet"),
    ("one tensor", "ExpertsUnsupported", "layers.0: experts.up and layers.1: experts.up are one tensor"),
    ("more than a tensor", "ExpertsUnsupported", "layers.1: experts.up is a Marked, not a plain tensor"),
    ("settings", "ExpertsUnsupported", "contention_opt=True"),
    ("units", "ExpertsUnsupported", "memory in units of 4096 and of 8192 bytes"),
]
ONE = [
    ("wrong number on one rank", "ExpertsUnsupported", "fit num_experts_per_worker=4"),
    ("without memory on one rank", "ExpertsUnsupported", "layers.1: experts.up has no memory yet"),
    ("on no device on one rank", "ExpertsUnsupported", "the model's parameters are on no device: a rank has one"),
]


@pytest.mark.parametrize(("name", "error", "words"), BOTH)
def test_what_no_rank_can_share(nursery: Nursery, tmp_path: Path, name: str, error: str, words: str) -> None:
    for told in nursery.run(tmp_path, "dwdp_refuse:refuse", 2, name=name):
        assert told[0] == error
        assert words in told[1]


@pytest.mark.parametrize(("name", "error", "words"), ONE)
def test_what_one_rank_cannot_share_the_others_are_told(
    nursery: Nursery, tmp_path: Path, name: str, error: str, words: str
) -> None:
    first, second = nursery.run(tmp_path, "dwdp_refuse:refuse", 2, name=name)
    assert second[0] == error
    assert words in second[1]
    assert first[0] == "DwdpError"
    assert first[1] == f"rank 1 of the group cannot share its experts: {second[1]}"


def test_layers_that_are_named_wrongly(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_refuse:added", 2):
        assert told[:6] == [
            "no model was set up: call setup(model) first",
            "no model was set up: call setup(model) first",
            "no layer was added: call add_layer for each layer with experts, before setup",
            "layer 1 was added twice",
            "layer 2 was added after set-up: add all layers first",
            "Toy has no layer 3 with experts: pass its module to add_layer",
        ]
        assert told[6].startswith("layer 0 has 3 layers with a gate and stacked experts, not one")
        assert told[7] == ""
        assert told[8:] == [
            f"layer {layer} was not added before setup, only 0: add_layer names each" for layer in (7, 1, -1)
        ]


def test_groups_that_need_more_ranks_than_there_are(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_refuse:placed", 3, size=2, groups=2):
        assert told == [
            "PartitionInvalid",
            "num_groups=2 × dwdp_size=2 = 4 ranks, but there are 3: start 4, or set num_groups=1",
        ]


def test_a_rank_in_no_group_is_refused_and_the_others_go_on(nursery: Nursery, tmp_path: Path) -> None:
    first, second, third = nursery.run(tmp_path, "dwdp_refuse:placed", 3, size=2, groups=1)
    assert first == second == ["", ""]
    assert third[0] == "PartitionInvalid"
    assert third[1].startswith("rank 2 would be in group 1, but num_groups=1: only the first 2 ranks share experts")


def test_a_group_that_is_none_of_this_ranks(nursery: Nursery, tmp_path: Path) -> None:
    for number, told in enumerate(nursery.run(tmp_path, "dwdp_refuse:no_member", 2)):
        assert told == [
            f"PartitionInvalid: rank {number} of the world is no member of group=: pass the group that this rank is "
            "in, and leave the block out on ranks that are in none",
            "DwdpError: group='world' is neither a process group of torch.distributed nor a communicator of mpi4py",
            "DwdpError: group=['world'] is neither a process group of torch.distributed nor a communicator of mpi4py",
        ]


@pytest.mark.parametrize("alone", [0, 1])
def test_a_rank_that_came_alone_meets_the_others_later(nursery: Nursery, tmp_path: Path, alone: int) -> None:
    told = nursery.run(tmp_path, "dwdp_refuse:met_again", 2, alone=alone)
    assert told[alone].startswith("ranks [0, 1] of the world do not all come together")
    assert told[1 - alone] == ""


def test_mpi() -> None:
    mpirun = Path(sys.executable).with_name("mpirun")
    done = subprocess.run(
        [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "4", sys.executable, "-m", "tests.support.dwdp_mpi"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["right"] * 4), done.stderr


def test_groups_of_torch_whose_ranks_are_in_other_groups_too(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_refuse:subgroup", 4)
