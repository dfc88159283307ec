"""What a source that nobody reads costs its engine: processor time, wake-ups, threads and memory.

Run `python -m benchmarks.idle_source`; it takes a little over a minute and writes benchmarks/results/idle_source.json.
A real process with a small model is watched before and after it publishes it.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from modelexpress.cli.child import Child, child, private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

RESULTS = Path(__file__).parent / "results" / "idle_source.json"
SECONDS = 60.0
MOST_PROCESSOR = 60.0  # milliseconds a minute: a thousandth of one core
MIB = 2**20


def usage() -> dict[str, Any]:
    """Return what this process has used so far, and by which of its threads."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    threads: dict[str, dict[str, float]] = defaultdict(lambda: {"milliseconds": 0.0, "wakeups": 0, "count": 0})
    for task in Path("/proc/self/task").iterdir():
        used = threads[names.get(int(task.name)) or (task / "comm").read_text().strip()]
        used["milliseconds"] += int((task / "schedstat").read_text().split()[0]) / 1e6
        used["wakeups"] += _voluntary_switches(task)
        used["count"] += 1
    return {
        "milliseconds": time.process_time() * 1000,
        "threads": len(os.listdir("/proc/self/task")),
        "rss": psutil.Process().memory_info().rss,
        "by_thread": threads,
    }


def _voluntary_switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def be_watched(registry: str) -> None:
    """Answer each line of standard input with the usage so far; publish at the first `publish`."""
    import torch

    import modelexpress as mx

    model = {"weight": torch.ones(1 << 20)}
    for line in sys.stdin:
        if line.strip() == "publish":
            publication = mx.publish(model, mx.SourceIdentity(model_name="idle"), registry=registry)
            publication.wait_ready(30)
        sys.stdout.write(json.dumps(usage()) + "\n")
        sys.stdout.flush()


def measure(seconds: float) -> Iterator[Figure]:
    """Yield what a source costs while it idles; before it publishes, the process costs nothing: it waits for a line."""
    with private_registry() as registry, child("-m", "benchmarks.idle_source", "--watched", registry) as process:
        alone = _ask(process, "look")
        _ask(process, "publish")
        before = _ask(process, "look")
        time.sleep(seconds)
        after = _ask(process, "look")
    unit = "ms of a core per minute"
    cost = (after["milliseconds"] - before["milliseconds"]) * 60 / seconds
    yield Figure("processor", cost, unit, target=f"≤ {MOST_PROCESSOR:g} {unit}", met=cost <= MOST_PROCESSOR)
    yield Figure("threads", after["threads"] - alone["threads"], "threads")
    yield Figure("memory", (after["rss"] - alone["rss"]) / MIB, "MiB", note="gRPC's libraries, mostly")
    for name, used in sorted(after["by_thread"].items()):
        earlier = before["by_thread"].get(name, {"milliseconds": 0.0, "wakeups": 0})
        spent = (used["milliseconds"] - earlier["milliseconds"]) * 60 / seconds
        wakeups = (used["wakeups"] - earlier["wakeups"]) / seconds
        note = f"{used['count']:g} threads, {wakeups:.1f} wake-ups a second"
        yield Figure(f"of that, {name}", spent, unit, note=note)


def _ask(process: Child, what: str) -> dict[str, Any]:
    process.tell(what)
    return process.answer()


def main() -> None:
    """Measure, print, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="How long the idle source is watched.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--watched", metavar="REGISTRY", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watched:
        be_watched(given.watched)
        return
    machine = Machine.this()
    figures = list(measure(given.seconds))
    Console().print(figure_table(f"an idle source, on {machine}", figures))
    given.out.parent.mkdir(exist_ok=True)
    report = {"machine": asdict(machine), "seconds": given.seconds, "figures": [f.fields() for f in figures]}
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
