"""The launcher for Slurm: where ranks go, the files that say so, and what a rank is given."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.slurm.place import (
    TABLE_HEADER,
    TOOLS,
    PlacementError,
    Rank,
    Shape,
    host_file,
    job_script,
    place,
    rank_table,
)
from tests.support.slurm_double import allocation, task_environment

SHOW = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT ${SLURM_HOSTFILE-none}"
"""What a rank runs here: it prints what it was given."""


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    gpus_per_node = draw(st.integers(2, 16))
    return Shape(draw(st.integers(2, gpus_per_node)), draw(st.integers(1, 40)), gpus_per_node)


def hosts(count: int) -> list[str]:
    return [f"node-{index:02}.cluster" for index in range(count)]


def parsed(table: str) -> tuple[Rank, ...]:
    header, *lines = table.splitlines()
    assert header == TABLE_HEADER
    fields = [line.split(" ") for line in lines]
    return tuple(Rank(int(number), host, int(a), int(b), int(c)) for number, host, a, b, c in fields)


def placer(folder: Path, *arguments: str, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "place.py"), *arguments]
    return subprocess.run(command, cwd=folder, input=standard_input, capture_output=True, text=True, timeout=60)


@given(shapes(), st.integers(0, 3))
def test_every_group_is_whole_on_one_host_and_every_rank_has_a_gpu_of_its_own(shape: Shape, spare: int) -> None:
    names = hosts(shape.nodes + spare)
    ranks = parsed(rank_table(place(shape, names)))
    assert [rank.number for rank in ranks] == list(range(shape.ranks))
    assert [rank.group for rank in ranks] == [number // shape.dwdp_size for number in range(shape.ranks)]
    for _, group in groupby(ranks, key=lambda rank: rank.group):
        assert len({rank.host for rank in group}) == 1
    used = [(host, list(here)) for host, here in groupby(ranks, key=lambda rank: rank.host)]
    assert [host for host, _ in used] == names[: shape.nodes]
    for _, here in used:
        assert [rank.local_rank for rank in here] == list(range(len(here)))
        assert {rank.local_world_size for rank in here} == {len(here)}
        assert len(here) <= shape.ranks_per_node <= shape.gpus_per_node


@given(shapes())
def test_the_host_file_has_the_host_of_every_rank_in_order(shape: Shape) -> None:
    ranks = place(shape, hosts(shape.nodes))
    assert host_file(ranks).splitlines() == [rank.host for rank in parsed(rank_table(ranks))]


@given(shapes())
def test_one_node_less_is_refused_with_what_would_work(shape: Shape) -> None:
    names = hosts(shape.nodes - 1)
    with pytest.raises(PlacementError) as caught:
        place(shape, names)
    if names:
        fewer = re.search(r"use --num-groups (\d+)", str(caught.value))
        assert fewer is not None
        place(replace(shape, num_groups=int(fewer[1])), names)
        place(shape, hosts(shape.nodes))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 40))
def test_a_group_larger_than_a_node_is_refused_with_what_would_work(gpus: int, more: int, num_groups: int) -> None:
    with pytest.raises(PlacementError, match=f"a group of {max(2, gpus + more)} ranks does not fit") as caught:
        Shape(max(2, gpus + more), num_groups, gpus)
    offered = re.search(r"--dwdp-size (\d+) --num-groups (\d+): .* on (\d+) node", str(caught.value))
    assert (offered is None) == (gpus == 1)
    if offered:
        size, groups, nodes = map(int, offered.groups())
        assert len(place(Shape(size, groups, gpus), hosts(nodes))) == size * groups


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "there is no host"),
        (["a", "b", "a", "c", "b"], "^a, b are listed more than once"),
        (["a", "a"], "^a is listed more than once"),
        (["node[1-4]"], "expand lists"),
        (["a,b"], "expand lists"),
    ],
)
def test_what_is_not_a_list_of_hosts_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        place(Shape(2, 1, 4), names)


@pytest.mark.parametrize(
    ("numbers", "option"), [((1, 1, 4), "--dwdp-size"), ((2, 0, 4), "--num-groups"), ((2, 1, 0), "--gpus-per-node")]
)
def test_numbers_that_are_too_small_are_refused(numbers: tuple[int, int, int], option: str) -> None:
    with pytest.raises(PlacementError, match=f"{option} is {min(numbers)}"):
        Shape(*numbers)


@given(shapes(), st.integers(1, 64))
def test_a_job_asks_for_what_its_placement_needs(shape: Shape, cpus: int) -> None:
    script = job_script(shape, Path("/shared/run"), cpus, ["true"])
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, re.MULTILINE))
    ranks = place(shape, hosts(shape.nodes))
    assert int(asked["nodes"]) == len({rank.host for rank in ranks})
    assert int(asked["ntasks-per-node"]) == max(rank.local_world_size for rank in ranks)
    assert (int(asked["gpus-per-node"]), int(asked["cpus-per-task"])) == (shape.gpus_per_node, cpus)
    assert f"--ntasks={len(ranks)} " in script
    assert not re.search(r"@\{?\w", script)


@pytest.mark.parametrize(
    ("folder", "cpus", "command", "message"),
    [
        ("/a b", 1, ["true"], "cannot stand in a job script"),
        ("/a", 0, ["true"], "--cpus-per-rank is 0"),
        ("/a", 1, [], "nothing to run"),
    ],
)
def test_a_job_that_cannot_be_written_is_refused(folder: str, cpus: int, command: list[str], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        job_script(Shape(2, 1, 4), Path(folder), cpus, command)


@pytest.mark.parametrize("path", ["dwdp.sbatch", "rank.sh"])
def test_scripts_are_what_bash_accepts(path: str) -> None:
    subprocess.run(["bash", "-n", TOOLS / path], check=True)


def written_job(folder: Path, shape: Shape, *command: str) -> Path:
    numbers = ("--dwdp-size", shape.dwdp_size, "--num-groups", shape.num_groups, "--gpus-per-node", shape.gpus_per_node)
    done = placer(folder, "job", *map(str, numbers), "--cpus-per-rank", "2", "--folder", "run", "--", *command)
    assert done.returncode == 0, done.stderr
    script = folder / "run" / "dwdp.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    return script


def run_job(script: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a job script as Slurm would on some hosts."""
    environment = allocation(script.parent / "commands", names, cpus_per_task=2)
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)


def test_a_job_starts_every_rank_where_it_belongs(tmp_path: Path) -> None:
    awkward = 'it\'s; $HOME "and" so\non'
    script = written_job(tmp_path, Shape(3, 3, 7), "bash", "-c", f'{SHOW}; echo "$1"', "name", awkward)
    done = run_job(script, ["a", "b"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 groups of 3 are 9 ranks on 2 nodes of 7 GPUs; 5 GPUs left over: wrote ")
    for rank, (host, local, here, group) in enumerate(
        [*(("a", local, 6, local // 3) for local in range(6)), *(("b", local, 3, 2) for local in range(3))]
    ):
        said = [line.removeprefix(f"{rank}: ") for line in lines if line.startswith(f"{rank}: ")]
        assert said == [
            f"rank {rank} of 9: group {group}, {host}, GPU {local} of 7",
            f"{rank} 9 {local} {here} a 20042 none",
            *awkward.splitlines(),
        ]


def test_a_job_that_got_too_few_nodes_starts_nothing(tmp_path: Path) -> None:
    done = run_job(written_job(tmp_path, Shape(3, 3, 4), "true"), ["a", "b"])
    assert done.returncode != 0
    assert "but there are only 2 nodes" in done.stderr
    assert "Ask for 3 nodes, or use --num-groups 2" in done.stderr
    assert not (tmp_path / "run" / "10042.hosts").exists()


def test_a_node_that_is_not_needed_is_named(tmp_path: Path) -> None:
    done = run_job(written_job(tmp_path, Shape(2, 2, 4), "true"), ["a", "b", "c"])
    assert done.returncode == 0, done.stderr
    assert "no group is left for b, c: ask for 1 node\n" in done.stderr


def test_a_job_has_the_status_of_a_rank_that_fails(tmp_path: Path) -> None:
    script = written_job(tmp_path, Shape(2, 1, 4), "bash", "-c", "exit $((RANK * 7))")
    assert run_job(script, ["a"]).returncode == 7


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "42.ranks"
    path.write_text(rank_table(place(Shape(2, 3, 4), ["a", "b"])))
    return path


def run_rank(
    table: Path, variables: Mapping[str, str], *command: str, without: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `rank.sh` as srun would, with more variables, or without one of them."""
    environment = {**os.environ, "MASTER_PORT": "20042", **variables}
    environment.pop(without, None)
    arguments = [str(TOOLS / "rank.sh"), str(table), "4", *(command or ("bash", "-c", SHOW))]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)


def test_a_rank_knows_itself_and_sees_every_gpu(table: Path) -> None:
    variables = task_environment(5, "b", 1, 4) | {"SLURM_HOSTFILE": "elsewhere"}
    done = run_rank(table, variables, "bash", "-c", f"{SHOW}; echo $CUDA_VISIBLE_DEVICES")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["rank 5 of 6: group 2, b, GPU 1 of 4", "5 6 1 2 a 20042 none", "0,1,2,3"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURMD_NODENAME": "a"}, "rank 5 is number 1 on a, but was placed as number 1 on b"),
        ({"SLURM_LOCALID": "0"}, "rank 5 is number 0 on b, but was placed as number 1 on b"),
        ({"SLURM_PROCID": "6"}, "rank 6 is not in"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "the GPUs that rank 5 sees on b are 1, not 4"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "the GPUs that rank 5 sees on b are 0, not 4"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, "the GPUs that rank 5 sees on b are 8, not 4"),
    ],
)
def test_a_rank_that_is_not_as_it_was_placed_does_not_start(
    table: Path, variables: dict[str, str], message: str
) -> None:
    done = run_rank(table, task_environment(5, "b", 1, 4) | variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURMD_NODENAME", "MASTER_PORT"])
def test_a_rank_that_srun_did_not_start_says_so(table: Path, name: str) -> None:
    done = run_rank(table, task_environment(5, "b", 1, 4), without=name)
    assert done.returncode != 0
    assert name in done.stderr


def test_a_table_that_is_not_there_is_named(table: Path) -> None:
    table.unlink()
    done = run_rank(table, task_environment(5, "b", 1, 4))
    assert f"b cannot read {table}" in done.stderr


@pytest.mark.parametrize(("there", "status"), [(4, 0), (8, 1)])
def test_without_the_variable_a_rank_counts_the_gpus(table: Path, there: int, status: int) -> None:
    tool = table.parent / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\nfor gpu in $(seq {there}); do echo "GPU $gpu: pretended"; done\n')
    tool.chmod(0o755)
    variables = task_environment(5, "b", 1, 4) | {"PATH": f"{table.parent}{os.pathsep}{os.environ['PATH']}"}
    done = run_rank(table, variables, without="CUDA_VISIBLE_DEVICES")
    assert done.returncode == status
    assert ("are 8, not 4" in done.stderr) == (there == 8)


def test_the_command_says_why_it_writes_nothing(tmp_path: Path) -> None:
    numbers = ("--dwdp-size", "5", "--num-groups", "2", "--gpus-per-node", "4")
    done = placer(tmp_path, "job", *numbers, "--folder", "run", "--", "true")
    assert done.returncode == 2
    assert done.stderr.startswith("place.py: a group of 5 ranks does not fit on a node of 4 GPUs.")
    assert not (tmp_path / "run").exists()


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(TOOLS.parent)
    page = (TOOLS / "README.md").read_text()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    steps = [
        step
        for block in re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for step in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    ]
    assert len(steps) == 4
    for command, shown in steps:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout.replace(str(tmp_path), "…"), done.stderr) == (0, shown, ""), command


def test_the_page_quotes_what_the_programs_say() -> None:
    page = (TOOLS / "README.md").read_text()
    programs = (TOOLS / "place.py").read_text() + (TOOLS / "rank.sh").read_text()
    for part in (
        "does not fit on a node of",
        "no group is left for",
        "is not the name of one host",
        "but was placed as",
    ):
        assert part in page
        assert part in programs


def test_nothing_else_is_needed_to_place_ranks(tmp_path: Path) -> None:
    for name in ("place.py", "dwdp.sbatch"):
        shutil.copy(TOOLS / name, tmp_path)
    numbers = ("--dwdp-size", "2", "--num-groups", "2", "--gpus-per-node", "4")
    command = [sys.executable, "-I", "-S", "place.py", "job", *numbers, "--folder", "run", "--", "true"]
    assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == 0
