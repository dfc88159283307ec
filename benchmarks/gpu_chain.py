"""Three targets at once: a chain against a star and against one target alone, one GPU visible to each process.

Run it with `python -m benchmarks.gpu_chain` where there are four GPUs. With two, there are two targets, the second one
on the GPU of the source: each direction of the link is used once then, too. `--place host` takes host memory.
All targets start at the same instant of the machine's clock; a time is that of the last one that is ready.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

import modelexpress as mx
from benchmarks.gpu_models import Role, role
from benchmarks.gpu_models import allocate as allocate_on_device
from benchmarks.gpu_raw_chain import copy_rates
from benchmarks.shapes import SETS, Shapes
from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

ROUNDS = 7
TARGETS = 3
_APART = 0.02
"""Seconds between targets that are to join in a certain order."""
_BEFORE = "the round before, not counted"
"""Its targets are not new: each has read from every other by then. Loads of new processes: benchmarks/gpu_load.py."""
STAR = "star"
CHAIN = "chain"
_PLACES = {"torch": "as torch allocates", "arena": "one arena", "host": "host memory"}
_TINY: Shapes = {f"layer.{number}": (1024, 1024) for number in range(24)}


def allocate(given: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return empty bfloat16 tensors: on the device as torch allocates, in an arena there, or in host memory."""
    shapes = _TINY if given.chosen == "tiny" else SETS[given.chosen]
    if given.place == "host":
        return {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    return allocate_on_device(shapes, arena=given.place == "arena")


def checksum(model: dict[str, torch.Tensor]) -> int:
    """Return a sum over the bits of every tensor."""
    return sum(int(tensor.view(torch.int16).sum(dtype=torch.int64)) for tensor in model.values())


def settings(**options: object) -> mx.Settings:
    """Return settings for workers on free ports."""
    return mx.Settings.model_validate({"worker_grpc_port": 0, **options})


def say(**fields: object) -> None:
    """Print a line for the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def serve(given: argparse.Namespace) -> None:
    """Be the source of both identities until standard input ends: one lets a single reader in, the other everyone."""
    model = allocate(given)
    for tensor in model.values():
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15)
    with ExitStack() as stack:
        for name, limit in ((CHAIN, 1), (STAR, 64)):
            identity = mx.SourceIdentity(model_name=name)
            published = mx.publish(model, identity, registry=given.registry, settings=settings(reader_limit=limit))
            assert stack.enter_context(published).wait_ready(60)
        say(checksum=checksum(model), nbytes=sum(tensor.nbytes for tensor in model.values()))
        sys.stdin.read()


def receive(given: argparse.Namespace) -> None:
    """Be a target: for each line load once, at the instant and in the way that the line says."""
    model = allocate(given)
    own = settings()
    with mx.Worker(given.registry, settings=own) as worker:
        say(worker_id=worker.worker_id)
        for line in sys.stdin:
            order = json.loads(line)
            for tensor in model.values():
                tensor.zero_()
            if given.place != "host":
                torch.cuda.synchronize()
            say(ready=True)
            start = json.loads(sys.stdin.readline())["start"]
            while time.monotonic() < start:
                pass
            say(**_load(model, order, given.registry, worker, own), checksum=checksum(model))
            for publication in worker.publications:
                publication.close()


def _load(
    model: dict[str, torch.Tensor], order: dict[str, Any], registry: str, worker: mx.Worker, own: mx.Settings
) -> dict[str, Any]:
    verified: list[tuple[float, int]] = []

    def progress(done: int, total: int) -> None:
        verified.append((time.monotonic(), done))
        if order["dies"] and 2 * done >= total:
            say(died=time.monotonic())
            os.kill(os.getpid(), signal.SIGKILL)

    identity = mx.SourceIdentity(model_name=order["identity"])
    passing_on = worker if order["identity"] == CHAIN else None
    report = mx.load(model, identity, registry=registry, worker=passing_on, settings=own, progress=progress)
    return {"ended": time.monotonic(), "verified": verified, **json.loads(report.json())}


class Link:
    """A target process as the parent sees it."""

    def __init__(self, process: Role) -> None:
        self.process = process
        self.worker_id = self.said()["worker_id"]

    def said(self) -> dict[str, Any]:
        """Return what it says next."""
        found: dict[str, Any] = json.loads(self.process.line())
        return found

    def tell(self, **fields: object) -> None:
        """Send it a line."""
        self.process.tell(json.dumps(fields))


def child(given: argparse.Namespace, name: str, registry: str, device: int) -> AbstractContextManager[Role]:
    """Start a process that sees one device, and end it with the block."""
    options = ["--registry", registry, "--set", given.chosen, "--place", given.place]
    return role("benchmarks.gpu_chain", name, str(device), options)


def together(
    links: Sequence[Link], identity: str, *, delays: Sequence[float] = (), dies: int | None = None
) -> list[dict[str, Any]]:
    """Let targets load at the same instant, or each so many seconds later; return what each says at its end.

    `seconds_to_ready` of each counts from its own start. The one that dies says when.
    """
    for number, link in enumerate(links):
        link.tell(identity=identity, dies=number == dies)
    for link in links:
        link.said()
    start = time.monotonic() + 0.2
    starts = [start + delay for delay in delays or [0.0] * len(links)]
    for link, at in zip(links, starts, strict=True):
        link.tell(start=at)
    answers: list[dict[str, Any]] = []
    for number, (link, at) in enumerate(zip(links, starts, strict=True)):
        answer = link.said()
        if number == dies:
            link.process.wait(60)
            answers.append(answer)
            continue
        answers.append({**answer, "seconds_to_ready": answer["ended"] - at})
    return answers


def measure(given: argparse.Namespace) -> list[Figure]:
    """Return the figures."""
    with private_registry() as registry, ExitStack() as stack:
        right = json.loads(stack.enter_context(child(given, "source", registry, 0)).line())
        gpus = _gpus(given)
        links = [Link(stack.enter_context(child(given, "target", registry, gpu))) for gpu in gpus]
        if given.place != "host":
            _acquaint(links)
        times: dict[str, list[float]] = {"alone": [], CHAIN: [], STAR: []}
        before: dict[str, float] = {}
        for number in range(given.rounds + 1):
            for name in times:
                chosen = links[:1] if name == "alone" else links
                answers = together(chosen, STAR if name == STAR else CHAIN)
                assert all(answer["checksum"] == right["checksum"] for answer in answers)
                last = max(answer["seconds_to_ready"] for answer in answers)
                _explain(name, answers)
                if number:  # the first round is not counted; contexts and kernels are there since `_acquaint`
                    times[name].append(last)
                else:
                    before[name] = last
        figures = _compare(len(links), {name: median(found) for name, found in times.items()}, before, right["nbytes"])
        figures += _death(links, median(times["alone"]), right)
    if given.place != "host":
        figures += _raw([0, *gpus], given.place)
    return [dataclasses.replace(figure, name=f"{_PLACES[given.place]}: {figure.name}") for figure in figures]


def _acquaint(links: Sequence[Link]) -> None:
    """Let each target read from each other one once: a process takes 10 ms more for its first bytes from a device."""
    for order in permutations(range(len(links))):
        together(links, CHAIN, delays=[_APART * place for place in order])


def _explain(name: str, answers: Sequence[dict[str, Any]]) -> None:
    """Say on standard error what each target spent its time on, in ms."""
    for answer in answers:
        stages = " ".join(f"{stage['name']} {1e3 * stage['seconds']:.1f};" for stage in answer["stages"])
        took = 1e3 * answer["seconds_to_ready"]
        sys.stderr.write(f"{name}: {took:.1f} ms from {answer['source'][-8:]}: {stages} {answer['notes']}\n")


def _gpus(given: argparse.Namespace) -> list[int]:
    """Return the GPU of each target; that of the source is 0."""
    if given.place == "host" or torch.cuda.device_count() > TARGETS:
        return list(range(1, TARGETS + 1))
    return [1, 0]


def _compare(targets: int, times: dict[str, float], before: dict[str, float], nbytes: int) -> list[Figure]:
    alone = times["alone"]
    ratio = times[CHAIN] / alone
    figures = [Figure("one target alone", 1e3 * alone, "ms", note=f"{nbytes / alone / 1e9:.0f} GB/s")]
    figures.append(
        Figure(
            f"{targets} targets, chain: the last one is ready",
            1e3 * times[CHAIN],
            "ms",
            "one alone",
            1e3 * alone,
            "≤ 1.15 ×",
            ratio <= 1.15,
        )
    )
    figures.append(
        Figure(f"{targets} targets, star: the last one is ready", 1e3 * times[STAR], "ms", "one alone", 1e3 * alone)
    )
    return figures + [Figure(f"{_BEFORE}: {name}", 1e3 * seconds, "ms") for name, seconds in before.items()]


def _raw(gpus: Sequence[int], place: str) -> list[Figure]:
    """Return what copies alone do along the same GPUs: no chain of loads is faster."""
    alone, chained = copy_rates(gpus, place)
    name = f"{len(gpus) - 1} copies at once, each from the one before"
    return [Figure("one copy alone", alone, "GB/s"), Figure(name, chained, "GB/s", "one alone", alone)]


def _death(links: Sequence[Link], alone: float, right: dict[str, Any]) -> list[Figure]:
    """Let the first link die at half, and another target come late."""
    dead, *survivors = together(links, CHAIN, delays=(0.0, alone / 20, alone / 2)[: len(links)], dies=0)
    _explain("a link dies", survivors)
    assert all(answer["checksum"] == right["checksum"] for answer in survivors)
    figures = []
    for name, answer in zip(("the one behind it", "the late one"), survivors, strict=False):
        figures += after_death(f"a link dies at half: {name}", answer, dead["died"], alone)
    return figures


def after_death(name: str, answer: dict[str, Any], died: float, alone: float) -> list[Figure]:
    """Return how a target fared that lost its source at an instant of the machine's clock."""
    percent = 100 / answer["nbytes"]
    had = max((done for at, done in answer["verified"] if at <= died), default=0)
    again = max(had - answer["kept_bytes"], 0)
    return [
        Figure(f"{name} is ready", 1e3 * answer["seconds_to_ready"], "ms", "one alone", 1e3 * alone),
        Figure(f"{name} had verified at that instant", percent * had, "% of the bytes"),
        Figure(f"{name} had and kept", percent * answer["kept_bytes"], "% of the bytes"),
        Figure(f"{name} fetched again of what it had verified", percent * again, "% of the bytes"),
    ]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["source", "target"])
    parser.add_argument("--registry", default="")
    parser.add_argument("--place", choices=[*_PLACES, "all"], default="all", help="where the models are")
    parser.add_argument("--set", dest="chosen", choices=[*SETS, "tiny"], default="dense")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="JSON; by default in benchmarks/results/")
    given = parser.parse_args()
    if given.role:
        (serve if given.role == "source" else receive)(given)
        return
    figures: list[Figure] = []
    places = ("arena", "torch") if given.place == "all" else (given.place,)
    for given.place in places:
        figures += measure(given)
    devices: dict[str, object] = {}
    if given.place != "host":
        devices = {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count()}
    machine = {**devices, **dataclasses.asdict(Machine.this())}
    out = given.out or Path("benchmarks/results/gpu_chain.json")
    out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"targets at once on {Machine.this()}", figures))


if __name__ == "__main__":
    main()
