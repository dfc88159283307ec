"""A double of Slurm, which tests cannot rely on: `scontrol` and `srun` as `deploy/slurm` calls them, on one host.

What they do was seen with Slurm 22.05. The double's srun is stricter: it refuses what would contradict the host file.
"""

import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

_HOSTS = "SLURM_DOUBLE_HOSTS"
_CONTRADICTIONS = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS_PER_NODE", "SLURM_GPU_BIND")


def allocation(folder: Path, hosts: Sequence[str], cpus_per_task: int) -> dict[str, str]:
    """Put the commands into a folder, and return the environment of a job script that was given some hosts.

    Args:
        folder: Where the commands go.
        hosts: The nodes of the job.
        cpus_per_task: What the job script asked for.
    """
    folder.mkdir()
    for command in ("scontrol", "srun"):
        script = folder / command
        script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__, command])} "$@"\n')
        script.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return clean | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "10042",
        "SLURM_JOB_NODELIST": "a list that scontrol understands",
        "SLURM_JOB_NUM_NODES": str(len(hosts)),
        "SLURM_NNODES": str(len(hosts)),
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": str(cpus_per_task),
        "SLURM_GPU_BIND": "single:1",
        _HOSTS: " ".join(hosts),
    }


def task_environment(rank: int, host: str, local_rank: int, gpus_per_node: int) -> dict[str, str]:
    """Return the variables that srun sets for one task."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local_rank),
        "SLURMD_NODENAME": host,
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus_per_node))),
    }


def srun(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start every task where the host file says, one after the other, and return the highest status."""
    contradictions = [name for name in _CONTRADICTIONS if name in environment]
    if contradictions:
        sys.exit(f"srun double: {', '.join(contradictions)} would contradict the host file")
    first = next(index for index, argument in enumerate(arguments) if not argument.startswith("--"))
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[:first])
    if set(options) != {"ntasks", "distribution", "gpus-per-node", "cpus-per-task", "kill-on-bad-exit", "label"}:
        sys.exit(f"srun double: unexpected options: {', '.join(options)}")
    hosts = Path(environment["SLURM_HOSTFILE"]).read_text().split()
    if options["distribution"] != "arbitrary" or len(hosts) != int(options["ntasks"]):
        sys.exit("srun double: the host file has not one line for every task")
    started: Counter[str] = Counter()
    status = 0
    for rank, host in enumerate(hosts):
        task = task_environment(rank, host, started[host], int(options["gpus-per-node"]))
        started[host] += 1
        done = subprocess.run(arguments[first:], env={**environment, **task}, stdout=subprocess.PIPE, text=True)
        sys.stdout.writelines(f"{rank}: {line}\n" for line in done.stdout.splitlines())
        status = max(status, done.returncode)
    return status


def scontrol(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Print the hosts of the job, one a line."""
    if list(arguments) != ["show", "hostnames", environment["SLURM_JOB_NODELIST"]]:
        sys.exit(f"scontrol double: unexpected arguments: {arguments}")
    sys.stdout.writelines(f"{host}\n" for host in environment[_HOSTS].split())
    return 0


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    sys.exit({"srun": srun, "scontrol": scontrol}[command](rest, os.environ))
