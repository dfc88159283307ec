"""GPU to GPU between two processes, one device visible to each: `local` against the peer copy of the same run.

Run it with `python -m benchmarks.gpu_load`. It needs two GPUs of one host; `--set` chooses the shapes. A third source
holds the dense model in host memory, and is compared with a copy from page-locked memory. Where the time of opening
goes is in the table, too; benchmarks/gpu_connect.py compares ways of opening and copying. With `--sweep` there are
lines for other sizes of a batch and other numbers of programs that digest it; the defaults are those of the table.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import modelexpress as mx
from benchmarks.gpu_connect import Offered, Steps, median_steps, offered, step_figures
from benchmarks.gpu_models import allocate, fill, role
from benchmarks.shapes import SETS
from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.memory.cuda_copy import Stream, allocate_pinned, free_pinned
from modelexpress.memory.cuda_driver import driver
from modelexpress.transfer import digester
from modelexpress.transport.unmapping import settled
from modelexpress.weights import reading
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import COPY, Journal, LoadReport
from modelexpress.weights.strategies import PeerStrategy
from modelexpress.weights.target import Target

REPETITIONS = 5
PLACES = {"torch": "as torch allocates", "arena": "one arena", "host": "from host memory"}
"""Where the source's tensors are; the target's are allocated likewise, by torch where the source is host memory."""
SWEPT_PROGRAMS = (None, 16, 33, 66, 132, 264, 528)
"""Of the digest kernel; None: one for each tile."""
SWEPT_BATCHES = (256 << 20, 512 << 20, 1 << 30)


def serve(registry: str, chosen: str, place: str) -> None:
    """Be the source until standard input ends."""
    model = allocate(SETS[chosen], arena=place == "arena")
    fill(model)
    if place == "host":
        model = {name: tensor.cpu() for name, tensor in model.items()}
        torch.cuda.empty_cache()
    used, started = torch.cuda.mem_get_info()[0], time.perf_counter()
    with (
        mx.publish(model, mx.SourceIdentity(model_name=chosen), registry=registry) as publication,
        ExitStack() as stack,
    ):
        seconds = time.perf_counter() - started
        assert publication.wait_ready(60)
        extra = used - torch.cuda.mem_get_info()[0]
        found: dict[str, Any] = {"publish": seconds, "extra": extra}
        if place != "host":
            found["offered"] = dataclasses.asdict(stack.enter_context(offered(model)))
        _say(found)
        sys.stdin.read()


def receive(registry: str, chosen: str, place: str, *, sweep: bool) -> None:
    """Be the target: print one JSON line of what every repetition took, digests on and off, and what opening takes."""
    descriptor = sys.stdin.readline().strip()
    model = allocate(SETS[chosen], arena=place == "arena")
    torch.cuda.synchronize()
    used = torch.cuda.mem_get_info()[0]
    results: dict[str, list[dict[str, float]]] = {"first": [], "on": [], "off": []}
    for number in range(2 * REPETITIONS + 1):
        verify = number % 2 == 0
        report = _load(model, chosen, registry, verify=verify)
        # The first one loads kernels and makes contexts, streams and pinned buffers.
        results[("on" if verify else "off") if number else "first"].append(_numbers(report))
        _rest()
    extra = used - torch.cuda.mem_get_info()[0]
    steps = dataclasses.asdict(median_steps(descriptor)) if descriptor else None
    swept = _sweep(model, chosen, registry) if sweep else []
    _say({**results, "extra": extra, "nbytes": report.nbytes, "steps": steps, "swept": swept})


def _sweep(model: dict[str, torch.Tensor], chosen: str, registry: str) -> list[dict[str, Any]]:
    """Return what copying took without digests and with them, for each size of a batch and number of programs."""
    from modelexpress.transfer import digest_kernel  # needs Triton

    found: list[dict[str, Any]] = []
    usual_shape, usual_bytes = digest_kernel.DEFAULT_SHAPE, reading.DEVICE_BATCH_BYTES
    for reading.DEVICE_BATCH_BYTES in SWEPT_BATCHES:
        found.append(_swept(model, chosen, registry, "no digests", verify=False))
        for programs in SWEPT_PROGRAMS:
            digest_kernel.DEFAULT_SHAPE = dataclasses.replace(usual_shape, programs=programs)
            digester._made.clear()
            found.append(_swept(model, chosen, registry, f"{programs or 'all'} programs", verify=True))
    digest_kernel.DEFAULT_SHAPE, reading.DEVICE_BATCH_BYTES = usual_shape, usual_bytes
    digester._made.clear()
    return found


def _swept(model: dict[str, torch.Tensor], chosen: str, registry: str, how: str, *, verify: bool) -> dict[str, Any]:
    seconds = []
    for number in range(REPETITIONS + 1):
        copied = _numbers(_load(model, chosen, registry, verify=verify))[COPY]
        _rest()
        if number:  # the first one loads the kernel
            seconds.append(copied)
    name = f"batches of {reading.DEVICE_BATCH_BYTES >> 20} MiB, {how}"
    return {"name": name, "copy": statistics.median(seconds)}


def _rest() -> None:
    """Wait until nothing of a load is left to do, which would share driver and interpreter with the next one."""
    for thread in threading.enumerate():
        if thread.name == "mx-parting":
            thread.join()
    assert settled(60)


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _load(model: dict[str, torch.Tensor], chosen: str, registry: str, *, verify: bool) -> LoadReport:
    identity = mx.SourceIdentity(model_name=chosen)
    strategy = PeerStrategy(identity, 0, registry, mx.Settings(), verify=verify)
    journal = Journal()
    with journal.stage("catalogue"):
        target = Target(model)
    return run_strategies(target, [strategy], journal)


def _numbers(report: LoadReport) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for stage in report.stages:
        numbers[stage.name] = numbers.get(stage.name, 0.0) + stage.seconds
    return {**numbers, "load": report.seconds}


def peer_copy(nbytes: int = 8 << 30) -> float:
    """Return the GB/s of one large driver copy from device 0 to device 1."""
    source, destination = (torch.empty(nbytes, dtype=torch.uint8, device=f"cuda:{device}") for device in (0, 1))
    destination.copy_(source)  # torch lets the devices reach each other; without that the host is in between
    torch.cuda.synchronize(1)
    return _best_copy(destination.data_ptr(), source.data_ptr(), nbytes)


def pinned_copy(nbytes: int = 4 << 30) -> float:
    """Return the GB/s of one large driver copy from page-locked memory to device 1."""
    destination = torch.empty(nbytes, dtype=torch.uint8, device="cuda:1")
    with driver().on(1):
        source = allocate_pinned(nbytes)
        try:
            return _best_copy(destination.data_ptr(), source, nbytes)
        finally:
            free_pinned(source)


def _best_copy(destination: int, source: int, nbytes: int) -> float:
    with driver().on(1):
        stream, best = Stream(), 0.0
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            stream.copy(destination, source, nbytes)
            stream.finish()
            best = max(best, nbytes / (time.perf_counter() - started) / 1e9)
        stream.close()
    return best


def measure(chosen: str, place: str, limit: float, *, sweep: bool) -> list[Figure]:
    """Return the figures of one set of shapes whose source is in one place."""
    with private_registry() as registry:
        options = ["--registry", registry, "--set", chosen, "--place", place]
        with role("benchmarks.gpu_load", "source", "0", options) as source:
            published = json.loads(source.line())
            with role("benchmarks.gpu_load", "target", "1", options + ["--sweep"] * sweep) as target:
                target.tell(published.get("offered", {}).get("descriptor", ""))
                found = json.loads(target.line())
    title = f"{chosen}, {PLACES[place]}"
    figures = _copy_figures(title, place, found, limit) + _load_figures(title, chosen, place, found, limit)
    figures.append(Figure(f"{title}: publishing", published["publish"], "s"))
    extra = max(found["extra"], published["extra"]) / 2**20
    figures.append(Figure(f"{title}: GPU memory beyond the model", extra, "MiB", target="≤ 256", met=extra <= 256))
    what = "pinned copy" if place == "host" else "peer copy"
    for way in found["swept"]:
        rate = found["nbytes"] / way["copy"] / 1e9
        figures.append(Figure(f"{title}: {way['name']}", rate, "GB/s", what, limit))
    if found["steps"] is not None:
        figures += step_figures(title, Offered(**published["offered"]), Steps(**found["steps"]))
    return figures


def _copy_figures(title: str, place: str, found: dict[str, Any], limit: float) -> list[Figure]:
    copy, off = _median(found, "on", COPY), _median(found, "off", COPY)
    least, what = (0.9, "pinned copy") if place == "host" else (0.95, "peer copy")
    rates = {"copy, digests off": found["nbytes"] / off / 1e9, "copy and verification": found["nbytes"] / copy / 1e9}
    figures = [
        Figure(f"{title}: {name}", rate, "GB/s", what, limit, f"≥ {least}", rate >= least * limit)
        for name, rate in rates.items()
    ]
    digests = Figure(f"{title}: digests", copy / off, "× the copy without", target="≤ 1.05", met=copy <= 1.05 * off)
    return [*figures, digests]


def _load_figures(title: str, chosen: str, place: str, found: dict[str, Any], limit: float) -> list[Figure]:
    pure, whole = found["nbytes"] / limit / 1e9, _median(found, "on", "load")
    bound = 1.35 if chosen == "dense" else 1.25
    target, met = ("", None) if place == "host" else (f"≤ {bound}", whole <= bound * pure)
    figures = [Figure(f"{title}: whole load", whole / pure, "× the pure copy", target=target, met=met)]
    stages = list(found["on"][0])
    figures += [Figure(f"{title}: {name}", 1e3 * _median(found, "on", name), "ms") for name in stages]
    figures.append(Figure(f"{title}: first load of a process", 1e3 * found["first"][0]["load"], "ms"))
    figures.append(Figure(f"{title}: connect, first load", 1e3 * found["first"][0].get("connect", 0.0), "ms"))
    return figures


def _median(found: dict[str, Any], mode: str, name: str) -> float:
    seconds: list[float] = [run.get(name, 0.0) for run in found[mode]]
    return statistics.median(seconds)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["source", "target"])
    parser.add_argument("--registry", default="")
    parser.add_argument("--set", dest="chosen", choices=[*SETS, "all"], default="all")
    parser.add_argument("--place", choices=list(PLACES), help="only this one")
    parser.add_argument("--sweep", action="store_true", help="also compare sizes of a batch and digesting programs")
    parser.add_argument("--out", type=Path, help="JSON; by default in benchmarks/results/")
    given = parser.parse_args()
    if given.role == "source":
        serve(given.registry, given.chosen, given.place)
        return
    if given.role == "target":
        receive(given.registry, given.chosen, given.place, sweep=given.sweep)
        return
    limits = {"peer": peer_copy(), "host": pinned_copy()}
    torch.cuda.empty_cache()
    figures = [Figure("peer copy, device 0 to device 1, 8 GiB", limits["peer"], "GB/s")]
    figures.append(Figure("pinned copy, host to device 1, 4 GiB", limits["host"], "GB/s"))
    for chosen in SETS if given.chosen == "all" else [given.chosen]:
        for place in [given.place] if given.place else PLACES:
            if place != "host" or chosen == "dense" or given.place:
                limit = limits["host" if place == "host" else "peer"]
                figures += measure(chosen, place, limit, sweep=given.sweep)
    devices = {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count()}
    machine = {**devices, **dataclasses.asdict(Machine.this())}
    out = given.out or Path(f"benchmarks/results/gpu_load_{given.chosen}.json")
    out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"GPU to GPU on {machine['device']}, {Machine.this()}", figures))


if __name__ == "__main__":
    main()
