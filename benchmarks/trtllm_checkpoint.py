"""A TensorRT-LLM checkpoint from one folder to another through the whole path, beside `cp` of the same files.

Run `python -m benchmarks.trtllm_checkpoint`; it takes two minutes, needs 16 GiB of memory and 12 GiB of disk, and
writes benchmarks/results/trtllm_checkpoint.json. The page cache is warm for both. The whole path is: the source, a
process of its own, reads the files into memory, computes their digests and publishes every rank; the target, this
process, receives all ranks at once, verifies every byte and waits until it is on disk, which `cp` does not. Memory
that a virtual machine has given back to its host is slow when it is touched again, so as much as each step fills is
touched right before it, for `cp` too; the first round is dropped.
"""

import argparse
import dataclasses
import json
import logging
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from modelexpress.cli.bench_runs import Say
from modelexpress.cli.child import child, private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.cli.sizes import parse_bytes
from modelexpress.engines.trtllm import MxTrtllmSourcePublisher, MxTrtllmTargetLoader
from modelexpress.engines.trtllm.errors import SourceNotFound
from modelexpress.settings import Settings
from modelexpress.weights.safetensors_header import build_header
from modelexpress.weights.stored_tensor import TensorEntry

RESULTS = Path(__file__).parent / "results" / "trtllm_checkpoint.json"
MODEL = "benchmark"
COLUMNS = 8192
PATTERN = np.random.default_rng(0).bytes((1 << 24) + 4096)


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured; the defaults are what the targets speak of."""

    nbytes: int = 4 << 30
    ranks: int = 4
    rounds: int = 3


@dataclasses.dataclass(frozen=True)
class Round:
    """Seconds of one round: of `cp`, of `sync` after it, of the source, of the target."""

    copy: float
    sync: float
    publish: float
    load: float

    @property
    def path(self) -> float:
        """Seconds of the whole path."""
        return self.publish + self.load


def measure(scope: Scope, place: Path, say: Say) -> Iterator[Figure]:
    """Yield every figure."""
    say("writing a checkpoint")
    folder = place / "checkpoint"
    nbytes = write_checkpoint(folder, scope)
    with private_registry() as registry:
        yield first_refusal(registry, place, scope.rounds)
        rounds = []
        for number in range(scope.rounds + 1):
            say(f"round {number} of {scope.rounds}")
            rounds.append(one_round(registry, folder, place))
    rounds = rounds[1:] if len(rounds) > 1 else rounds
    yield from rates(rounds, nbytes / 1e9, scope)


def rates(rounds: list[Round], gigabytes: float, scope: Scope) -> Iterator[Figure]:
    """Yield the rates of the best rounds."""
    limit = gigabytes / min(each.copy for each in rounds)
    durable = gigabytes / min(each.copy + each.sync for each in rounds)
    best = min(rounds, key=lambda each: each.path)
    what = f"{gigabytes:.2f} GB in {scope.ranks} ranks"
    rate = gigabytes / best.path
    note = f"published in {best.publish:.2f} s, received, verified and on disk in {best.load:.2f} s"
    copied = "cp of the same files"
    yield Figure(f"{what}, folder to folder", rate, "GB/s", copied, limit, "≥ 0.6 of it", rate >= 0.6 * limit, note)
    yield Figure(f"{what}, folder to folder, durable", rate, "GB/s", "cp, then sync", durable)
    received = gigabytes / min(each.load for each in rounds)
    yield Figure(f"{what}, from a source that is up", received, "GB/s", copied, limit)


def one_round(registry: str, folder: Path, place: Path) -> Round:
    """Copy a checkpoint, then send it through the whole path, both with a warm page cache."""
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    warm(folder)
    touch(nbytes)
    copy, sync = copy_seconds(folder, place / "copy")
    warm(folder)
    with child("-m", "benchmarks.trtllm_checkpoint", "--serve", registry, "--folder", folder) as source:
        source.line()
        touch(nbytes)
        source.tell()
        publish = source.answer()["seconds"]
        touch(nbytes)
        started = time.perf_counter()
        load_from(registry, place / "target")
        load = time.perf_counter() - started
    subprocess.run(["cmp", folder / "rank0.safetensors", place / "target/checkpoint/rank0.safetensors"], check=True)
    shutil.rmtree(place / "target")
    return Round(copy, sync, publish, load)


def load_from(registry: str, out: Path) -> None:
    """Receive the checkpoint, and build nothing."""
    settings = Settings.model_validate({"registry": registry})
    MxTrtllmTargetLoader(MODEL, output_dir=out, wait=20, settings=settings).load(skip_build=True)


def first_refusal(registry: str, place: Path, rounds: int) -> Figure:
    """Return how long it takes to learn that there is no source, without waiting for one."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        try:
            MxTrtllmTargetLoader("nobody-has-it", registry, place / "none", wait=0).load(skip_build=True)
        except SourceNotFound:
            seconds.append(time.perf_counter() - started)
    # The first one counts: whoever starts asks once.
    return Figure("no source and no wait: the refusal", seconds[0], "s", target="≤ 0.2 s", met=seconds[0] <= 0.2)


def copy_seconds(source: Path, target: Path) -> tuple[float, float]:
    """Return what copying the files of a folder takes, as a person would, and what `sync` takes after it."""
    target.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", *sorted(source.iterdir()), target], check=True)
    copied = time.perf_counter()
    subprocess.run(["sync", "-f", target], check=True)
    synced = time.perf_counter()
    shutil.rmtree(target)
    return copied - started, synced - copied


def touch(nbytes: int) -> None:
    """Let the machine hand out so much memory, and take it back."""
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def warm(folder: Path) -> None:
    """Read every file of a folder, so that the page cache has it, and wait until nothing is left to be written."""
    subprocess.run(["sync", "-f", folder], check=True)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def write_checkpoint(folder: Path, scope: Scope) -> int:
    """Write a checkpoint and return the bytes of its tensors."""
    folder.mkdir()
    mapping = {"world_size": scope.ranks, "tp_size": scope.ranks, "pp_size": 1}
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "mapping": mapping}))
    # Tensors of 64 MiB, as the larger ones of a sharded model are.
    rows = min(4096, scope.nbytes // scope.ranks // (2 * COLUMNS))
    count = scope.nbytes // scope.ranks // (2 * COLUMNS * rows)
    shape, size = (rows, COLUMNS), 2 * COLUMNS * rows
    entries = [TensorEntry(f"layers.{number}.weight", "bfloat16", shape, size) for number in range(count)]
    for rank in range(scope.ranks):
        with (folder / f"rank{rank}.safetensors").open("wb") as file:
            file.write(build_header(entries))
            for number in range(count):
                write_pattern(file.write, size, rank * count + number)
    return scope.ranks * count * size


def write_pattern(write: Callable[[bytes], object], nbytes: int, shift: int) -> None:
    """Write bytes that begin elsewhere in the pattern for every tensor."""
    start = shift % 4096
    while nbytes:
        piece = PATTERN[start : start + min(nbytes, 1 << 24)]
        write(piece)
        nbytes -= len(piece)


def serve(registry: str, folder: Path) -> None:
    """Publish the checkpoint until standard input ends."""
    settings = Settings.model_validate({"registry": registry, "worker_grpc_port": 0})
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    with MxTrtllmSourcePublisher(folder, MODEL, settings=settings) as publisher:
        publisher.wait_ready(20)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
        sys.stdin.read()


def main() -> None:
    """Measure what the arguments ask for, print it, and write it down; or serve, as the source of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=Scope.nbytes)
    parser.add_argument("--ranks", type=int, default=Scope.ranks)
    parser.add_argument("--rounds", type=int, default=Scope.rounds)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", metavar="REGISTRY", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.folder)
        return
    logging.disable(logging.ERROR)
    scope, machine = Scope(chosen.bytes, chosen.ranks, chosen.rounds), Machine.this()
    with (
        Console(stderr=True).status("starting") as status,
        tempfile.TemporaryDirectory(prefix="mx-benchmark-") as place,
    ):
        figures = list(measure(scope, Path(place), status.update))
    Console().print(figure_table(f"TensorRT-LLM checkpoints on {machine}", figures))
    result = {
        "machine": dataclasses.asdict(machine),
        "scope": dataclasses.asdict(scope),
        "figures": [figure.fields() for figure in figures],
    }
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
