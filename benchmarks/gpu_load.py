"""GPU to GPU between two processes, one device visible to each: `local` against the peer copy of the same run.

Run it with `python -m benchmarks.gpu_load`. It needs two GPUs of one host; `--set` chooses the shapes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

import modelexpress as mx
from benchmarks.shapes import SETS, Shapes
from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.memory.cuda_driver import driver
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import COPY, Journal, LoadReport
from modelexpress.weights.strategies import PeerStrategy
from modelexpress.weights.target import Target

REPETITIONS = 5


def allocate(shapes: Shapes, *, arena: bool) -> dict[str, torch.Tensor]:
    """Return empty bfloat16 tensors: each from torch's allocator, or all in one allocation."""
    if not arena:
        return {name: torch.empty(shape, dtype=torch.bfloat16, device="cuda") for name, shape in shapes.items()}
    sizes = {name: -(-2 * torch.Size(shape).numel() // 512) * 256 for name, shape in shapes.items()}
    flat = torch.empty(sum(sizes.values()), dtype=torch.bfloat16, device="cuda")
    tensors, start = {}, 0
    for name, shape in shapes.items():
        tensors[name] = flat[start : start + torch.Size(shape).numel()].view(shape)
        start += sizes[name]
    return tensors


def serve(registry: str, chosen: str, arena: bool) -> None:
    """Be the source until standard input ends."""
    model = allocate(SETS[chosen], arena=arena)
    for tensor in model.values():
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15)
    torch.cuda.synchronize()
    used, started = torch.cuda.mem_get_info()[0], time.perf_counter()
    with mx.publish(model, mx.SourceIdentity(model_name=chosen), registry=registry) as publication:
        seconds = time.perf_counter() - started
        assert publication.wait_ready(60)
        extra = used - torch.cuda.mem_get_info()[0]
        sys.stdout.write(json.dumps({"publish": seconds, "extra": extra}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


def receive(registry: str, chosen: str, arena: bool) -> None:
    """Be the target: print one JSON line of what every repetition took, digests on and off."""
    model = allocate(SETS[chosen], arena=arena)
    torch.cuda.synchronize()
    used = torch.cuda.mem_get_info()[0]
    results: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for number in range(2 * REPETITIONS + 1):
        verify = number % 2 == 0
        report = _load(model, chosen, registry, verify=verify)
        if number:  # the first one loads kernels and opens contexts
            results["on" if verify else "off"].append(_numbers(report))
    extra = used - torch.cuda.mem_get_info()[0]
    sys.stdout.write(json.dumps({**results, "extra": extra, "nbytes": report.nbytes}) + "\n")


def _load(model: dict[str, torch.Tensor], chosen: str, registry: str, *, verify: bool) -> LoadReport:
    identity = mx.SourceIdentity(model_name=chosen)
    strategy = PeerStrategy(identity, 0, registry, mx.Settings(), verify=verify)
    return run_strategies(Target(model), [strategy], Journal())


def _numbers(report: LoadReport) -> dict[str, float]:
    numbers = {stage.name: stage.seconds for stage in report.stages}
    return {**numbers, "load": report.seconds}


@contextmanager
def _child(role: str, registry: str, chosen: str, arena: bool, device: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.gpu_load", "--role", role, "--registry", registry, "--set", chosen]
    child = subprocess.Popen(
        command + (["--arena"] if arena else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": device, "MX_WORKER_GRPC_PORT": "0"},
    )
    try:
        yield child
    finally:
        child.communicate()


def peer_copy(nbytes: int = 8 << 30) -> float:
    """Return the GB/s of one large driver copy from device 0 to device 1."""
    source, destination = (torch.empty(nbytes, dtype=torch.uint8, device=f"cuda:{device}") for device in (0, 1))
    destination.copy_(source)  # torch lets the devices reach each other; without that the host is in between
    torch.cuda.synchronize(1)
    with driver().on(1):
        stream, best = driver().create_stream(), 0.0
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            driver().copy(destination.data_ptr(), source.data_ptr(), nbytes, stream)
            driver().synchronise(stream)
            best = max(best, nbytes / (time.perf_counter() - started) / 1e9)
        driver().destroy_stream(stream)
    return best


def measure(chosen: str, arena: bool, limit: float) -> list[Figure]:
    """Return the figures of one set of shapes."""
    with private_registry() as registry, _child("source", registry, chosen, arena, "0") as source:
        assert source.stdout is not None
        published = json.loads(source.stdout.readline())
        with _child("target", registry, chosen, arena, "1") as target:
            assert target.stdout is not None
            found = json.loads(target.stdout.readline())
    title = f"{chosen}, {'one arena' if arena else 'as torch allocates'}"
    median = {
        mode: {name: sorted(run[name] for run in found[mode])[REPETITIONS // 2] for name in found[mode][0]}
        for mode in ("on", "off")
    }
    nbytes = found["nbytes"]
    copy, whole, off = median["on"][COPY], median["on"]["load"], median["off"][COPY]
    pure, bound = nbytes / limit / 1e9, 1.35 if chosen == "dense" else 1.25
    figures = [
        _rate(f"{title}: copy, digests off", nbytes / off / 1e9, limit, 0.95),
        _rate(f"{title}: copy and verification", nbytes / copy / 1e9, limit, 0.95),
        Figure(f"{title}: digests", copy / off, "× the copy without", target="≤ 1.05", met=copy <= 1.05 * off),
        Figure(f"{title}: whole load", whole / pure, "× the pure copy", target=f"≤ {bound}", met=whole <= bound * pure),
    ]
    figures += [Figure(f"{title}: {name}", 1e3 * seconds, "ms") for name, seconds in median["on"].items()]
    figures.append(Figure(f"{title}: publishing", published["publish"], "s"))
    extra = max(found["extra"], published["extra"]) / 2**20
    figures.append(Figure(f"{title}: GPU memory beyond the model", extra, "MiB", target="≤ 256", met=extra <= 256))
    return figures


def _rate(name: str, value: float, limit: float, least: float) -> Figure:
    return Figure(name, value, "GB/s", "peer copy", limit, f"≥ {least}", value >= least * limit)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["source", "target"])
    parser.add_argument("--registry", default="")
    parser.add_argument("--set", dest="chosen", choices=[*SETS, "all"], default="all")
    parser.add_argument("--arena", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON; by default in benchmarks/results/")
    given = parser.parse_args()
    if given.role:
        (serve if given.role == "source" else receive)(given.registry, given.chosen, given.arena)
        return
    limit = peer_copy()
    torch.cuda.empty_cache()
    figures = [Figure("peer copy, device 0 to device 1, 8 GiB", limit, "GB/s")]
    for chosen in SETS if given.chosen == "all" else [given.chosen]:
        for arena in (False, True):
            figures += measure(chosen, arena, limit)
    devices = {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count()}
    machine = {**devices, **dataclasses.asdict(Machine.this())}
    out = given.out or Path(f"benchmarks/results/gpu_load_{given.chosen}.json")
    out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"GPU to GPU on {machine['device']}, {Machine.this()}", figures))


if __name__ == "__main__":
    main()
