"""The transport `nixl` between two GPUs, one visible to each process, against what NIXL does by itself in the same run.

Run `python -m benchmarks.gpu_nixl --out FILE`. It needs two GPUs of one host; `--host --tiny` runs the same on host
memory anywhere, to see that it works. Each way has a source and a target of its own, so that nothing is mapped or
registered before it is measured; bytes are compared with the source's. Of the rounds after the first the median counts.
GB are 10^9 bytes.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu_nixl_ways import WAYS, Way
from benchmarks.shapes import SETS, Shapes
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

SECONDS_FOR_A_WAY = 240.0
"""After so long a way is given up: a machine with GPUs is not kept waiting."""
AIM, REGISTRATION_MS, EXTRA_MIB = 0.95, 50.0, 256.0
ROUNDS = 5
TINY = 40


def tiny(shapes: Shapes) -> Shapes:
    """Return the first few shapes, much smaller."""
    return {name: tuple(max(1, size // 64) for size in shape) for name, shape in list(shapes.items())[:TINY]}


def play(role: str, way: type[Way], shapes: Shapes, folder: Path, place: str, rounds: int) -> None:
    """Be one side of one way; what was measured goes into a file of the folder."""
    side = way(shapes, place)
    if role == "source":
        _write(folder / "source.json", side.offer(folder))
        print("ready", flush=True)
        sys.stdin.read()
    else:
        _write(folder / "target.json", side.fetch(folder, rounds))


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found))


@contextmanager
def _child(role: str, device: int, options: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.gpu_nixl", "--role", role, *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(device)}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    patience = threading.Timer(SECONDS_FOR_A_WAY, child.kill)
    patience.start()
    try:
        yield child
        if status := child.wait():
            raise SystemExit(f"the {role} of {options} ended with status {status}")
    finally:
        patience.cancel()
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def run(name: str, chosen: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what both sides of one way measured."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        options = ["--way", name, "--set", chosen, "--folder", made, "--rounds", str(given.rounds)]
        options += [f"--{flag}" for flag in ("tiny", "host") if getattr(given, flag)]
        options += ["--part-mib", str(given.part_mib), "--workers", str(given.workers)]
        source = stack.enter_context(_child("source", 0, options))
        assert source.stdout is not None
        assert source.stdin is not None
        # Libraries print there, too.
        while (line := source.stdout.readline()).strip() != "ready":
            if not line:
                raise SystemExit(f"the source of {options} ended with status {source.wait()}")
        with _child("target", 1, options) as target:
            assert target.stdout is not None
            target.stdout.read()
        source.stdin.close()
        source.stdout.read()
        return {side: json.loads((Path(made) / f"{side}.json").read_text()) for side in ("source", "target")}


def rate(found: Mapping[str, Any]) -> float:
    """Return GB/s of the median round."""
    return float(found["target"]["nbytes"] / statistics.median(found["target"]["rounds"]) / 1e9)


def figures_of(chosen: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[Figure]:
    """Yield the figures of one set of shapes."""
    limit = rate(found["block"])
    yield Figure(f"{chosen}: one block, by NIXL alone", limit, "GB/s")
    each = rate(found["tensors"])
    yield Figure(f"{chosen}: every tensor by itself, by NIXL alone", each, "GB/s", "one block, by NIXL alone", limit)
    for name, title in (("arena", "one allocation"), ("torch", "as torch allocates")):
        ours, yardstick = found[name], found["block" if name == "arena" else "tensors"]
        value = rate(ours)
        note = f"{ours['source']['regions']} regions"
        aim = f"≥ {AIM}"
        yield Figure(
            f"{chosen}, {title}: read",
            value,
            "GB/s",
            "one block, by NIXL alone",
            limit,
            aim,
            value >= AIM * limit,
            note,
        )
        for side in ("source", "target"):
            yield _registration(f"{chosen}, {title}: registration at the {side}", ours[side], yardstick[side])
        if (joined := ours["target"]["joined"]) is not None:
            yield _milliseconds(f"{chosen}, {title}: registration with neighbours joined", joined)
        for step, what in (("open", "open"), ("first", "first read"), ("agent", "starting an agent")):
            theirs = f"{'one block' if name == 'arena' else 'every tensor by itself'}, by NIXL alone"
            yield _milliseconds(
                f"{chosen}, {title}: {what}", ours["target"][step], theirs, yardstick["target"].get(step)
            )
        if (extra := ours["target"]["extra_mib"]) is not None:
            met = extra <= EXTRA_MIB
            yield Figure(f"{chosen}, {title}: GPU memory beyond the model", extra, "MiB", "", None, "≤ 256", met)


def _registration(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Figure:
    value = 1e3 * ours["register"]
    other = 1e3 * theirs["register"]
    return Figure(
        name,
        value,
        "ms",
        "by NIXL alone",
        other,
        f"≤ {REGISTRATION_MS:g}",
        value <= REGISTRATION_MS,
        f"{ours['regions']} regions against {theirs['regions']}",
    )


def _milliseconds(name: str, seconds: float, limit: str = "", other: float | None = None) -> Figure:
    return Figure(name, 1e3 * seconds, "ms", limit if other else "", 1e3 * other if other else None)


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="chosen", choices=[*SETS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="a few small tensors")
    parser.add_argument("--host", action="store_true", help="host memory instead of that of GPUs")
    parser.add_argument("--part-mib", type=int, default=0, help="what one transfer of ours reads; 0: as it is")
    parser.add_argument("--workers", type=int, default=1, help="UCX workers, and threads that post, of ours")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_nixl.json"))
    for hidden in ("--role", "--way"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write JSON."""
    given = arguments()
    if given.part_mib:
        from modelexpress.transport import nixl_reader

        nixl_reader.DEVICE_BATCH_BYTES = given.part_mib << 20
    if given.workers > 1 and given.way in ("arena", "torch"):
        from benchmarks.nixl_workers import use_workers

        use_workers(given.workers)
    if given.role:
        shapes = tiny(SETS[given.chosen]) if given.tiny else SETS[given.chosen]
        place = "cpu" if given.host else "cuda"
        play(given.role, WAYS[given.way], shapes, given.folder, place, given.rounds)
        return
    figures: list[Figure] = []
    for chosen in SETS if given.chosen == "all" else [given.chosen]:
        found = {}
        for name in WAYS:
            Console(stderr=True).print(f"{chosen}: {name}")
            found[name] = run(name, chosen, given)
            Console(stderr=True).print(found[name])
        figures += figures_of(chosen, found)
    machine = _machine(given.host)
    given.out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=170).print(figure_table(f"nixl on {machine.get('device', 'host memory')}, {Machine.this()}", figures))


def _machine(host: bool) -> dict[str, Any]:
    machine = dataclasses.asdict(Machine.this())
    if host:
        return machine
    import torch

    return {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count(), **machine}


if __name__ == "__main__":
    main()
