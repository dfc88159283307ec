"""Places the ranks of a DWDP job on nodes of Slurm: whole groups, node by node, each rank with a GPU of its own.

    python deploy/slurm/place.py job --dwdp-size 3 --num-groups 6 --gpus-per-node 4 --folder run -- python prefill.py

writes the job script `run/dwdp.sbatch`. When the job runs and its hosts are known, the script calls

    scontrol show hostnames | python place.py files … --folder run --job 42

which writes `run/42.hosts`, the host file that srun follows, and `run/42.ranks`, the table that `rank.sh` reads.
Only the standard library is needed.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

TOOLS = Path(__file__).resolve().parent
TABLE_HEADER = "# rank host local_rank local_world_size group"

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FOLDER = re.compile(r"[\w/.+=:,@-]+", re.ASCII)


class PlacementError(ValueError):
    """The ranks cannot be placed as asked; the message has the numbers and what would work."""


class _JobTemplate(Template):
    """A template with `@{name}`, so that the shell's own `$name` is left alone."""

    delimiter = "@"


@dataclass(frozen=True)
class Shape:
    """What is to be placed, and on what kind of node.

    Args:
        dwdp_size: Ranks in a group, at least 2.
        num_groups: Groups, at least 1.
        gpus_per_node: GPUs of every node that the job may use, at least 1.

    Raises:
        PlacementError: A number is too small, or a group does not fit on a node.
    """

    dwdp_size: int
    num_groups: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--dwdp-size", self.dwdp_size, 2),
            ("--num-groups", self.num_groups, 1),
            ("--gpus-per-node", self.gpus_per_node, 1),
        ):
            if value < least:
                raise PlacementError(f"{name} is {value}, but must be at least {least}")
        if self.dwdp_size > self.gpus_per_node:
            raise PlacementError(self._too_large())

    @property
    def ranks(self) -> int:
        """Ranks of all groups."""
        return self.dwdp_size * self.num_groups

    @property
    def groups_per_node(self) -> int:
        """Groups that fit on a node."""
        return self.gpus_per_node // self.dwdp_size

    @property
    def nodes(self) -> int:
        """Nodes that the groups need."""
        return -(-self.num_groups // self.groups_per_node)

    @property
    def ranks_per_node(self) -> int:
        """Ranks of the fullest node."""
        return min(self.num_groups, self.groups_per_node) * self.dwdp_size

    def __str__(self) -> str:
        idle = self.nodes * self.gpus_per_node - self.ranks
        return (
            f"{_count(self.num_groups, 'group')} of {self.dwdp_size} are {self.ranks} ranks on "
            f"{_count(self.nodes, 'node')} of {_count(self.gpus_per_node, 'GPU')}; "
            f"{_count(idle, 'GPU') if idle else 'none'} left over"
        )

    def _too_large(self) -> str:
        message = (
            f"a group of {self.dwdp_size} ranks does not fit on a node of {_count(self.gpus_per_node, 'GPU')}. "
            "The ranks of a group pass each other file descriptors of their memory, so they must be on one host. "
            f"Use nodes with at least {self.dwdp_size} GPUs"
        )
        if self.gpus_per_node < 2:
            return message
        other = Shape(self.gpus_per_node, max(1, self.ranks // self.gpus_per_node), self.gpus_per_node)
        return f"{message}, or --dwdp-size {other.dwdp_size} --num-groups {other.num_groups}: {other}"


@dataclass(frozen=True)
class Rank:
    """Where one rank runs.

    Args:
        number: The rank in the whole job, from 0.
        host: Slurm's name of its node.
        local_rank: The rank on its node, from 0, which is also the index of its GPU there.
        local_world_size: Ranks on its node.
        group: Its group, from 0.
    """

    number: int
    host: str
    local_rank: int
    local_world_size: int
    group: int


def place(shape: Shape, hosts: Sequence[str]) -> tuple[Rank, ...]:
    """Fill the hosts with whole groups, in order; hosts that are not needed stay empty.

    Args:
        shape: What is to be placed.
        hosts: Names of the nodes, each once, in the order in which to fill them.

    Returns:
        The ranks in order. Those of a group are consecutive, and so are those of a node.

    Raises:
        PlacementError: There are too few hosts, or their names are not what Slurm calls nodes.
    """
    _check_hosts(hosts)
    if len(hosts) < shape.nodes:
        most = len(hosts) * shape.groups_per_node
        raise PlacementError(
            f"{shape}, but there {'is' if len(hosts) == 1 else 'are'} only {_count(len(hosts), 'node')}. "
            f"A node takes {_count(shape.groups_per_node, 'group')}, because a group cannot be split over nodes. "
            f"Ask for {_count(shape.nodes, 'node')}, or use --num-groups {most}"
        )
    placed: list[Rank] = []
    for node, host in enumerate(hosts[: shape.nodes]):
        first = node * shape.groups_per_node
        groups = range(first, min(first + shape.groups_per_node, shape.num_groups))
        local_world_size = len(groups) * shape.dwdp_size
        for local_rank in range(local_world_size):
            group = groups[local_rank // shape.dwdp_size]
            placed.append(Rank(len(placed), host, local_rank, local_world_size, group))
    return tuple(placed)


def _check_hosts(hosts: Sequence[str]) -> None:
    """Raise PlacementError unless these are names of nodes, each there once."""
    if not hosts:
        raise PlacementError(
            "there is no host to place ranks on: give their names on standard input, one a line, as "
            '`scontrol show hostnames "$SLURM_JOB_NODELIST"` prints them inside a job'
        )
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise PlacementError(
                f"{host!r} is not the name of one host: expand lists such as node[1-4] with `scontrol show hostnames`"
            )
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if twice:
        raise PlacementError(
            f"{', '.join(twice)} {'is' if len(twice) == 1 else 'are'} listed more than once, "
            "so two ranks would get the same GPU: give each host once"
        )


def host_file(ranks: Sequence[Rank]) -> str:
    """Return the host file for srun's arbitrary distribution: the host of every rank, one a line."""
    return "".join(f"{rank.host}\n" for rank in ranks)


def rank_table(ranks: Sequence[Rank]) -> str:
    """Return the table that `rank.sh` reads: a line for every rank, its fields separated by spaces."""
    lines = (f"{each.number} {each.host} {each.local_rank} {each.local_world_size} {each.group}" for each in ranks)
    return "\n".join((TABLE_HEADER, *lines, ""))


def job_script(shape: Shape, folder: Path, cpus_per_rank: int, command: Sequence[str]) -> str:
    """Return the job script for sbatch.

    Args:
        shape: What is to be placed.
        folder: Where the job writes its files; every node must see it.
        cpus_per_rank: CPUs that Slurm gives to a rank, at least 1.
        command: What each rank runs, and its arguments.

    Raises:
        PlacementError: There is no command, no CPU, or the folder has a name that the script cannot hold.
    """
    if cpus_per_rank < 1:
        raise PlacementError(f"--cpus-per-rank is {cpus_per_rank}, but must be at least 1")
    if not command:
        raise PlacementError("there is nothing to run: give the command of a rank after --, as in -- python prefill.py")
    if not _FOLDER.fullmatch(str(folder)):
        raise PlacementError(
            f"{str(folder)!r} cannot stand in a job script: use a folder of letters, digits and / . _ - + = : , @"
        )
    return _JobTemplate((TOOLS / "dwdp.sbatch").read_text()).substitute(
        summary=str(shape),
        nodes=shape.nodes,
        ranks_per_node=shape.ranks_per_node,
        cpus_per_rank=cpus_per_rank,
        dwdp_size=shape.dwdp_size,
        num_groups=shape.num_groups,
        gpus_per_node=shape.gpus_per_node,
        ranks=shape.ranks,
        python=shlex.quote(sys.executable),
        tools=shlex.quote(str(TOOLS)),
        folder=folder,
        command=shlex.join(command),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is asked for, say so in a line, and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        shape = Shape(options.dwdp_size, options.num_groups, options.gpus_per_node)
        folder = options.folder.absolute()
        written = _write_job(options, shape, folder) if options.what == "job" else _write_files(options, shape, folder)
    except (PlacementError, OSError) as error:
        sys.stderr.write(f"place.py: {error}\n")
        return 2
    sys.stdout.write(f"{shape}: wrote {', '.join(map(str, written))}\n")
    return 0


def _write_job(options: argparse.Namespace, shape: Shape, folder: Path) -> tuple[Path, ...]:
    script = job_script(shape, folder, options.cpus_per_rank, options.command)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dwdp.sbatch"
    path.write_text(script)
    return (path,)


def _write_files(options: argparse.Namespace, shape: Shape, folder: Path) -> tuple[Path, ...]:
    hosts = sys.stdin.read().split()
    ranks = place(shape, hosts)
    if idle := hosts[shape.nodes :]:
        sys.stderr.write(f"place.py: no group is left for {', '.join(idle)}: ask for {_count(shape.nodes, 'node')}\n")
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{options.job}.hosts", folder / f"{options.job}.ranks")
    for path, text in zip(paths, (host_file(ranks), rank_table(ranks)), strict=True):
        path.write_text(text)
    return paths


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dwdp-size", type=int, required=True, help="ranks in a group")
    shared.add_argument("--num-groups", type=int, required=True, help="groups in the job")
    shared.add_argument("--gpus-per-node", type=int, required=True, help="GPUs of every node that the job may use")
    shared.add_argument("--folder", type=Path, required=True, help="where files go; every node must see it")
    parser = argparse.ArgumentParser(prog="place.py", description="Places the ranks of a DWDP job on nodes of Slurm.")
    commands = parser.add_subparsers(dest="what", required=True)
    job = commands.add_parser("job", parents=[shared], help="write the job script, dwdp.sbatch")
    job.add_argument("--cpus-per-rank", type=int, default=8, help="CPUs of a rank (8)")
    job.add_argument("command", nargs="*", help="what each rank runs, after --")
    files = commands.add_parser("files", parents=[shared], help="write host file and table; hosts on standard input")
    files.add_argument("--job", required=True, help="what the names of the files start with: the job's number")
    return parser


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
