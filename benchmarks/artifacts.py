"""Caches of compiled kernels from a peer on this machine, beside a plain copy of the folder.

Run `python -m benchmarks.artifacts`; it takes a minute or two, needs 4 GiB of memory and 4 GiB of disk, and writes
benchmarks/results/artifacts.json. The copy is `cp -r` of the same folder on the same disk, in turn with the transfers;
the first round of each touches memory that the machine has not given out before, and is dropped. The source is a
process of its own; the target is this one.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console

from modelexpress.artifacts.fetch import fetch
from modelexpress.artifacts.kind import STATE_FOLDER
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.report import ArtifactReport
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.cli.bench_runs import Say
from modelexpress.cli.child import child, private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.cli.sizes import parse_bytes
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings

RESULTS = Path(__file__).parent / "results" / "artifacts.json"
KIND = Triton()
IDENTITY = KIND.identity(SourceIdentity(gpu_arch="benchmark"))


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured; the defaults are what the targets speak of."""

    nbytes: int = 1 << 30
    files: int = 10_000
    rounds: int = 3


def measure(scope: Scope, place: Path, say: Say) -> Iterator[Figure]:
    """Yield every figure."""
    say("writing a cache")
    cache = place / "cache"
    write_cache(cache, scope)
    with ExitStack() as stack:
        registry = stack.enter_context(private_registry())
        say("starting a source")
        source = stack.enter_context(child("-m", "benchmarks.artifacts", "--serve", registry, "--folder", cache))
        sealing = source.answer()["seconds"]
        yield Figure("sealing the cache, at the source", sealing, "s")
        yield from transfers(registry, cache, scope, place, say)


def transfers(registry: str, cache: Path, scope: Scope, place: Path, say: Say) -> Iterator[Figure]:
    """Yield what whole transfers, and those of nothing, take over each transport."""
    gigabytes = scope.nbytes / 1e9
    for transport in ("local", "tcp"):
        copies, reports, again = [], [], []
        for number in range(scope.rounds + 1):
            say(f"{transport}: round {number} of {scope.rounds}")
            copies.append(copy_seconds(cache, place / "copy"))
            reports.append(bring(registry, transport, place / "target"))
            again.append(bring(registry, transport, place / "target").seconds)
            shutil.rmtree(place / "target")
        best = min(reports[1:], key=lambda report: report.seconds)
        limit = gigabytes / min(copies[1:])
        rate = gigabytes / best.seconds
        stages = ", ".join(f"{stage.name} {stage.seconds:.2f} s" for stage in best.stages)
        yield Figure(
            f"{scope.files:,} files over {transport}, verified and installed",
            rate,
            "GB/s",
            "cp -r of the same folder",
            limit,
            "≥ 0.5 of it",
            rate >= 0.5 * limit,
            stages,
        )
        yield at_most(f"a second transfer, nothing missing, {transport}", min(again[1:]), "s", 0.3)


def bring(registry: str, transport: str, root: Path) -> ArtifactReport:
    """Bring the cache into a folder, whatever is in it; that it was brought before is forgotten."""
    for mark in (root / STATE_FOLDER).glob("*.mark"):
        mark.unlink()
    settings = Settings.model_validate({"registry": registry, "transport": transport})
    started = time.perf_counter()
    report = fetch(KIND, IDENTITY, root, settings=settings)
    return dataclasses.replace(report, seconds=time.perf_counter() - started)


def copy_seconds(source: Path, target: Path) -> float:
    """Return what copying a folder takes, as a person would."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def at_most(name: str, value: float, unit: str, aim: float) -> Figure:
    """Return a figure that should not be above `aim`."""
    return Figure(name, value, unit, target=f"≤ {aim:g} {unit}", met=value <= aim)


def write_cache(root: Path, scope: Scope) -> None:
    """Write files of equal size, ten in a folder, as Triton keeps the stages of a kernel."""
    size = scope.nbytes // scope.files
    content = np.random.default_rng(0).bytes(size + scope.files)
    for number in range(scope.files):
        folder = root / f"{number // 10:032x}"
        folder.mkdir(parents=True, exist_ok=True)
        # Each begins one byte further on, so that no two are the same.
        (folder / f"kernel.{number % 10}").write_bytes(content[number : number + size])


def serve(registry: str, folder: Path) -> None:
    """Offer a cache until standard input ends."""
    settings = Settings.model_validate({"registry": registry, "worker_grpc_port": 0})
    started = time.perf_counter()
    snapshot = take_snapshot(KIND, folder, settings.artifact_chunk_bytes)
    seconds = time.perf_counter() - started
    with (
        Worker(settings=settings) as worker,
        offer(snapshot, IDENTITY, worker=worker, settings=settings) as publication,
    ):
        publication.wait_ready(20)
        print(json.dumps({"seconds": seconds}), flush=True)
        sys.stdin.read()


def main() -> None:
    """Measure what the arguments ask for, print it, and write it down; or serve, as the source of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=Scope.nbytes)
    parser.add_argument("--files", type=int, default=Scope.files)
    parser.add_argument("--rounds", type=int, default=Scope.rounds)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", metavar="REGISTRY", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.folder)
        return
    scope, machine = Scope(chosen.bytes, chosen.files, chosen.rounds), Machine.this()
    with (
        Console(stderr=True).status("starting") as status,
        tempfile.TemporaryDirectory(prefix="mx-benchmark-") as place,
    ):
        figures = list(measure(scope, Path(place), status.update))
    Console().print(figure_table(f"caches on {machine}", figures))
    result = {
        "machine": dataclasses.asdict(machine),
        "scope": dataclasses.asdict(scope),
        "figures": [figure.fields() for figure in figures],
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
