"""Heartbeats and listings of a registry with 5,000 workers on SQLite, against the targets of the project.

Run `python benchmarks/registry.py`; it takes a minute and writes benchmarks/results/registry.json. The registry
and the load generator (benchmarks/registry_load.py) are processes of their own and share the machine's cores.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

WORKERS = 5_000
RATE = 1_600
CALLERS = 64
SECONDS = 15

HERE = Path(__file__).parent
RESULT = HERE / "results" / "registry.json"
SERVE = "import typer; from modelexpress.cli.serve import serve; typer.run(serve)"


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a registry on SQLite in `folder`; yield its address and process."""
    command = [sys.executable, "-c", SERVE, "--listen", "127.0.0.1:0", "--store", f"sqlite:{folder}/registry.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
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


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def measure() -> dict[str, Any]:
    """Register the workers and send both loads."""
    with tempfile.TemporaryDirectory() as folder, registry(Path(folder)) as (address, process):
        generate(address, "--register")
        before = process.cpu_times()
        scheduled = generate(address, "--rate", RATE, "--seconds", SECONDS)
        after = process.cpu_times()
        busy = (after.user + after.system - before.user - before.system) / SECONDS
        most = generate(address, "--callers", CALLERS, "--seconds", SECONDS)
        return {
            "machine": machine(),
            "workers": WORKERS,
            "open_loop": {"offered": RATE, **scheduled, "registry_cores": round(busy, 2)},
            "closed_loop": {"callers": CALLERS, **most},
            "registry_memory_mib": round(process.memory_info().rss / 2**20, 1),
        }


def show(result: dict[str, Any]) -> None:
    """Print each figure beside its target."""
    print(f"{WORKERS} workers on SQLite, {result['machine']}")
    scheduled, most = result["open_loop"], result["closed_loop"]
    rows = [
        ("heartbeats/s, closed loop", most["heartbeats"]["rate"], 1_500, True),
        (f"heartbeat p99 ms at {RATE}/s", scheduled["heartbeats"]["p99_ms"], 25, False),
        (f"listing one identity p50 ms at {RATE}/s", scheduled["listings"]["p50_ms"], 5, False),
    ]
    for name, value, target, more_is_better in rows:
        ratio = value / target
        met = ratio >= 1 if more_is_better else ratio <= 1
        sign = ">=" if more_is_better else "<="
        print(f"{name:45} {value:10} target {sign} {target:6} ratio {ratio:5.2f} {'met' if met else 'MISSED'}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    measured = measure()
    show(measured)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
