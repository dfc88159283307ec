"""Heartbeats and listings of a registry with 5,000 workers on SQLite, against the targets of the project.

Run `python benchmarks/registry.py`; it takes a minute and writes benchmarks/results/registry.json. The registry
and the load generator (benchmarks/registry_load.py) are processes of their own and share the machine's cores. The
limit is a server that just answers (benchmarks/registry_limit.py), under the same load in the same run.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

WORKERS = 5_000
RATE = 1_600
CALLERS = 64
SECONDS = 15

HERE = Path(__file__).parent
RESULT = HERE / "results" / "registry.json"
LIMIT = "a gRPC server that just answers"


@contextlib.contextmanager
def server(*command: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server that prints its address; yield that and the process."""
    arguments = [sys.executable, *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], psutil.Process(process.pid)
        finally:
            process.terminate()


def generate(address: str, *arguments: object) -> dict[str, Any]:
    """Run the load generator and return what it saw."""
    command = [sys.executable, str(HERE / "registry_load.py"), address, "--workers", str(WORKERS)]
    done = subprocess.run([*command, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def both_loads(address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the open loop and the closed loop saw."""
    scheduled = generate(address, "--rate", RATE, "--seconds", SECONDS)
    return scheduled, generate(address, "--callers", CALLERS, "--seconds", SECONDS)


def measure() -> tuple[list[Figure], dict[str, Any]]:
    """Return the figures, and everything that the generator saw."""
    with server(str(HERE / "registry_limit.py")) as (address, _):
        limit, most_limit = both_loads(address)
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:{folder}/registry.db"
        arguments = ("-m", "modelexpress.cli", "serve", "--listen", "127.0.0.1:0", "--store", store)
        with server(*arguments) as (address, process):
            generate(address, "--register")
            seen, most = both_loads(address)
            memory = process.memory_info().rss / 2**20
    at_rate = f"at {RATE}/s and 50 listings/s"
    figures = [
        Figure(
            f"heartbeats, {CALLERS} callers that wait",
            most["heartbeats"]["rate"],
            "per s",
            LIMIT,
            most_limit["heartbeats"]["rate"],
            target=">= 1500 per s",
            met=most["heartbeats"]["rate"] >= 1500,
        ),
        latency(f"heartbeat {at_rate}, p50", seen, limit, "heartbeats", "p50_ms"),
        latency(f"heartbeat {at_rate}, p99", seen, limit, "heartbeats", "p99_ms", 25),
        latency(f"listing one identity {at_rate}, p50", seen, limit, "listings", "p50_ms", 5),
        latency(f"listing one identity {at_rate}, p99", seen, limit, "listings", "p99_ms"),
        Figure(f"memory of the registry with {WORKERS:,} workers", memory, "MiB"),
    ]
    return figures, {"open_loop": seen, "closed_loop": most, "limit_open": limit, "limit_closed": most_limit}


def latency(
    name: str, seen: dict[str, Any], limit: dict[str, Any], kind: str, percentile: str, target: float | None = None
) -> Figure:
    """Return the figure of a latency."""
    value = seen[kind][percentile]
    wanted = "" if target is None else f"<= {target:g} ms"
    met = None if target is None else value <= target
    return Figure(name, value, "ms", LIMIT, limit[kind][percentile], target=wanted, met=met)


def main() -> None:
    """Measure, print, write."""
    machine = Machine.this()
    figures, details = measure()
    console = Console()
    console.print(str(machine))
    console.print(figure_table(f"a registry with {WORKERS:,} workers on SQLite", figures))
    result = {
        "machine": dataclasses.asdict(machine),
        "workers": WORKERS,
        "figures": [figure.fields() for figure in figures],
        "details": details,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
