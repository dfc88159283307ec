"""A source whose GPU computes while it serves: how much slower that is, without a cap of its uplink and with caps.

Run it with `python -m benchmarks.gpu_serving`. It needs two GPUs of one host: the source computes on the first and
publishes a model there, a target on the second loads it again and again; each process sees its own GPU alone.
`--host --tiny` tries the logic in host memory: its figures mean nothing.
"""

import argparse
import dataclasses
import json
import select
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

import modelexpress as mx
from benchmarks.beside.children import Process, hear, say
from benchmarks.beside.tensors import (
    Tensors,
    allocate,
    arrived,
    chosen_shapes,
    common_options,
    fill,
    finish,
    total_bytes,
)
from benchmarks.gpu_work import LOOPS, rate
from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.weights.report import COPY

RESULTS = Path(__file__).parent / "results"
CAPS = (0, 100_000_000_000, 25_000_000_000)
TINY_CAPS = (0, 1_000_000_000, 250_000_000)


def serve(given: argparse.Namespace) -> None:
    """Be the source: publish, or compute, as each line says."""
    tensors = allocate(chosen_shapes(given), given.device)
    fill(tensors)
    steps = {name: make(given.device, tiny=given.tiny) for name, make in LOOPS.items()}
    finish(given.device)
    with ExitStack() as stack:
        say(ready=True)
        for line in sys.stdin:
            order = json.loads(line)
            if "loop" in order:
                say(rate=rate(steps[order["loop"]], order["seconds"], lambda: finish(given.device)))
                continue
            stack.close()
            settings = mx.Settings(worker_grpc_port=0, uplink_limit=order["cap"])
            identity = mx.SourceIdentity(model_name=order["name"])
            publication = mx.publish(tensors, identity, registry=given.registry, settings=settings)
            say(ready=stack.enter_context(publication).wait_ready(60))


def receive(given: argparse.Namespace) -> None:
    """Be the target: for each line load what it names until the next line comes, and say what arrived."""
    tensors = allocate(chosen_shapes(given), given.device)
    for tensor in tensors.values():
        tensor.zero_()
    for line in sys.stdin:
        identity = mx.SourceIdentity(model_name=json.loads(line)["name"])
        _load(tensors, identity, given.registry)  # the first one opens contexts and connections
        say(began=True)
        started, copies = time.perf_counter(), []
        while not select.select([sys.stdin], [], [], 0)[0]:
            copies.append(_load(tensors, identity, given.registry))
        took = time.perf_counter() - started
        hear()
        say(loads=len(copies), seconds=took, copy=sum(copies), right=arrived(tensors))


def _load(tensors: Tensors, identity: mx.SourceIdentity, registry: str) -> float:
    """Load once and return the seconds of the copy."""
    report = mx.load(tensors, identity, registry=registry, settings=mx.Settings(worker_grpc_port=0))
    return sum(stage.seconds for stage in report.stages if stage.name == COPY)


class Bench:
    """A source and a target at work.

    Args:
        given: Options of the command.
        registry: HOST:PORT.
        stack: Ends both processes.
    """

    def __init__(self, given: argparse.Namespace, registry: str, stack: ExitStack) -> None:
        options = ["--registry", registry, "--set", given.chosen, "--device", "cpu" if given.host else "cuda"]
        options += ["--tiny"] if given.tiny else []
        start = [
            Process("benchmarks.gpu_serving", "--role", role, *options, visible=visible)
            for role, visible in (("source", "" if given.host else "0"), ("target", "" if given.host else "1"))
        ]
        self._source, self._target = (stack.enter_context(process) for process in start)
        self._seconds = given.seconds
        self._source.answer()

    def publish(self, name: str, cap: int) -> None:
        """Let the source offer its model with a cap, and nothing else."""
        self._source.tell(name=name, cap=cap)
        assert self._source.answer()["ready"], "the registry did not take the publication"

    def work(self, loop: str) -> float:
        """Return how many steps a second the source does."""
        self._source.tell(loop=loop, seconds=self._seconds)
        return float(self._source.answer()["rate"])

    def work_while_serving(self, loop: str, name: str) -> tuple[float, dict[str, Any]]:
        """Return the same while the target loads, and what the target says of that."""
        self._target.tell(name=name)
        self._target.answer()
        steps = self.work(loop)
        self._target.tell(stop=True)
        answer = self._target.answer()
        assert answer["right"], "the target holds other bytes than the source"
        return steps, answer


def measure(given: argparse.Namespace, nbytes: int) -> Iterator[Figure]:
    """Yield the figures."""
    with private_registry() as registry, ExitStack() as stack:
        bench = Bench(given, registry, stack)
        bench.publish("idle", 0)
        alone = {loop: [bench.work(loop)] for loop in LOOPS}
        beside: dict[tuple[str, int], tuple[float, dict[str, Any]]] = {}
        for cap in TINY_CAPS if given.tiny else CAPS:
            bench.publish(f"capped-{cap}", cap)
            for loop in LOOPS:
                beside[loop, cap] = bench.work_while_serving(loop, f"capped-{cap}")
        for loop in LOOPS:
            alone[loop].append(bench.work(loop))
    for loop, found in alone.items():
        note = f"{found[0]:.4g} before the others, {found[1]:.4g} after them"
        yield Figure(f"{given.chosen}: {loop}, nobody reads", mean(found), "a second", note=note)
    for (loop, cap), (steps, answer) in beside.items():
        yield from _compare(f"{given.chosen}: {loop}", cap, steps, mean(alone[loop]), answer, nbytes)


def _compare(title: str, cap: int, steps: float, alone: float, answer: dict[str, Any], nbytes: int) -> Iterator[Figure]:
    title = f"{title}, a target reads " + (f"at most {cap / 1e9:g} GB/s" if cap else "without a cap")
    yield Figure(title, steps, "a second", "nobody reads", alone)
    yield Figure(f"{title}: slow-down", 100 * (1 - steps / alone), "%")
    moved, note = answer["loads"] * nbytes / 1e9, f"{answer['loads']} loads"
    copied, on_average = moved / answer["copy"], moved / answer["seconds"]
    limit, met = ("the cap", 1e9 * on_average <= cap) if cap else ("", None)
    # While copying a little more than the cap is right: the last bytes of a load are asked for ahead of their time.
    yield Figure(f"{title}: received while copying", copied, "GB/s", limit, cap / 1e9, note=note)
    yield Figure(f"{title}: received on average", on_average, "GB/s", limit, cap / 1e9, "≤ 1" if cap else "", met, note)


def main() -> None:
    """Measure, print a table, write JSON; or be one of the processes."""
    parser = argparse.ArgumentParser(parents=[common_options(add_help=False)], description=__doc__)
    parser.add_argument("--role", choices=["source", "target"], help=argparse.SUPPRESS)
    parser.add_argument("--registry", default="", help=argparse.SUPPRESS)
    parser.add_argument("--host", action="store_true", help="in host memory, without a GPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each loop")
    parser.add_argument("--out", type=Path, help="JSON; by default in benchmarks/results/, and with --host nowhere")
    given = parser.parse_args()
    if given.role:
        (serve if given.role == "source" else receive)(given)
        return
    if not given.host and torch.cuda.device_count() < 2:
        parser.error("two CUDA devices are needed; --host --tiny does without")
    figures = list(measure(given, total_bytes(chosen_shapes(given))))
    device = "none" if given.host else torch.cuda.get_device_name(0)
    machine = {"device": device, "devices": torch.cuda.device_count(), **dataclasses.asdict(Machine.this())}
    Console(width=150).print(figure_table(f"Computing while serving on {device}, {Machine.this()}", figures))
    if out := given.out or (None if given.host else RESULTS / f"gpu_serving_{given.chosen}.json"):
        fields = [figure.fields() for figure in figures]
        out.write_text(json.dumps({"machine": machine, "figures": fields}, indent=1) + "\n")


if __name__ == "__main__":
    main()
