"""Loads from a peer on this machine, against the targets of the project and the limits of the machine.

Run `python -m benchmarks.load`; it takes some five minutes, needs 14 GiB of memory, and writes
benchmarks/results/load.json. GB are 10^9 bytes. Every limit is measured in the same run, in turn with what is
compared with it; the first round touches memory that the machine has not given out before, and is dropped.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.footprint import idle_cost, import_seconds, peak_bytes_over
from benchmarks.side_by_side import compare_folder
from modelexpress.cli.bench_runs import LIMITS, Say, Timings, time_loads
from modelexpress.cli.child import Child, child, private_registry
from modelexpress.cli.demo_model import Scale
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.cli.sizes import parse_bytes

RESULTS = Path(__file__).parent / "results" / "load.json"
SMALL_TENSOR = 1024
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured; the defaults are what the targets speak of."""

    nbytes: int = 4 << 30
    tensors: int = 300
    many: int = 20_000
    rounds: int = 5
    idle_seconds: float = 60.0
    folder: Scale = "demo"


def measure(scope: Scope, say: Say) -> Iterator[Figure]:
    """Yield every figure."""
    with ExitStack() as stack:
        registry = stack.enter_context(private_registry())
        say("starting a source")
        source = stack.enter_context(_source(registry, scope.nbytes, scope.tensors))
        threads = source.answer()["threads"]
        yield from large_loads(registry, scope, say)
        yield from peak_memory(registry, scope, say)
        say(f"watching an idle source for {scope.idle_seconds:g} s")
        yield from idle_source(source.pid, threads, scope.idle_seconds)
    with ExitStack() as stack:
        registry = stack.enter_context(private_registry())
        nbytes = scope.many * SMALL_TENSOR
        stack.enter_context(_source(registry, nbytes, scope.many)).answer()
        timings = time_loads(registry, nbytes, scope.many, "local", say, limit=False, rounds=scope.rounds)
        yield at_most(f"all but the copy, {scope.many:,} tensors", timings.rest, "s", 1.0)
        yield Figure(f"whole load of {scope.many:,} tensors of 1 KiB", timings.whole, "s")
    yield at_most("import modelexpress", import_seconds() * 1000, "ms", 150)
    with tempfile.TemporaryDirectory(prefix="mx-benchmark-") as place:
        yield from compare_folder(Path(place), scope.folder, scope.rounds, say)


def large_loads(registry: str, scope: Scope, say: Say) -> Iterator[Figure]:
    """Yield the rates of one large load over each transport, with and without digests."""
    many = (registry, scope.nbytes, scope.tensors)
    checked = time_loads(*many, "local", say, limit=True, rounds=scope.rounds)
    yield rate("local, digests on", checked, "local", 0.85)
    unchecked = time_loads(*many, "local", say, limit=True, verify=False, rounds=scope.rounds)
    yield rate("local, digests off", unchecked, "local", None)
    yield Figure("what digests cost", (checked.copy / unchecked.copy - 1) * 100, "% of the copy")
    sockets = time_loads(*many, "tcp", say, limit=True, rounds=scope.rounds)
    yield rate("tcp, digests on", sockets, "tcp", 0.9)
    yield at_most(f"all but the copy, {scope.tensors} tensors", checked.rest, "s", 0.15)
    yield Figure("whole load over local", checked.nbytes / checked.whole / 1e9, "GB/s")
    yield Figure("whole load over tcp", sockets.nbytes / sockets.whole / 1e9, "GB/s")


def peak_memory(registry: str, scope: Scope, say: Say) -> Iterator[Figure]:
    """Yield what a target needs above the size of the model."""
    for transport in ("local", "tcp"):
        say(f"{transport}: peak memory of a target")
        over = peak_bytes_over(registry, scope.nbytes, scope.tensors, transport)
        note = "anonymous memory, files and its own arena; pages mapped from the source are the source's"
        name = f"memory over the model's size, {transport}"
        yield dataclasses.replace(at_most(name, over / MIB, "MiB", 256), note=note)


def idle_source(pid: int, threads: int, seconds: float) -> Iterator[Figure]:
    """Yield what a source costs its engine while nobody reads."""
    yield Figure("idle source, processor", idle_cost(pid, seconds) * 1000, "ms of a core per minute")
    yield Figure("idle source, Python threads", threads, "threads")


def rate(name: str, timings: Timings, transport: str, aim: float | None) -> Figure:
    """Return the rate of the copy of a load beside the limit of its transport."""
    value, limit = (timings.nbytes / seconds / 1e9 for seconds in (timings.copy, timings.limit))
    if aim is None:
        return Figure(name, value, "GB/s", LIMITS[transport], limit)
    return Figure(name, value, "GB/s", LIMITS[transport], limit, f"≥ {aim} of it", value >= aim * limit)


def at_most(name: str, value: float, unit: str, aim: float) -> Figure:
    """Return a figure that should not be above `aim`."""
    return Figure(name, value, unit, target=f"≤ {aim:g} {unit}", met=value <= aim)


def _source(registry: str, nbytes: int, tensors: int) -> AbstractContextManager[Child]:
    return child("-m", "modelexpress.cli.bench_source", registry, "--bytes", nbytes, "--tensors", tensors)


def main() -> None:
    """Measure what the arguments ask for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=Scope.nbytes)
    parser.add_argument("--tensors", type=int, default=Scope.tensors)
    parser.add_argument("--many", type=int, default=Scope.many)
    parser.add_argument("--rounds", type=int, default=Scope.rounds)
    parser.add_argument("--idle-seconds", type=float, default=Scope.idle_seconds)
    parser.add_argument("--folder", choices=["demo", "tiny"], default=Scope.folder)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    scope = Scope(chosen.bytes, chosen.tensors, chosen.many, chosen.rounds, chosen.idle_seconds, chosen.folder)
    machine = Machine.this()
    with Console(stderr=True).status("starting") as status:
        figures = list(measure(scope, status.update))
    Console().print(figure_table(f"loads on {machine}", figures))
    result = {
        "machine": dataclasses.asdict(machine),
        "scope": dataclasses.asdict(scope),
        "figures": [figure.fields() for figure in figures],
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
