"""How long a replica of vLLM takes to come up: cold, with weights from a peer, with caches too, and locally warm.

Run it with `python -m benchmarks.engine_start`, after `make engines`. Every replica is `vllm serve` as a user starts
it, with a folder of caches of its own. "Locally warm" is the first replica started again, with its own caches and
weights. Compilation is what takes long here, so the model is tiny.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from modelexpress.cli.child import private_registry
from modelexpress.cli.demo_model import build_demo_model
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.client import Client

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEADLINE = 300.0
_INITIALISED = re.compile(r"init engine \(.*\) took ([\d.]+) s")


@dataclasses.dataclass(frozen=True)
class Start:
    """What one start took, in seconds: until the server answers, and of that initialising the engine."""

    healthy: float
    initialised: float


@dataclasses.dataclass(frozen=True)
class Replica:
    """A replica of vLLM.

    Args:
        folder: For its caches and its log.
        model: The checkpoint.
        registry: HOST:PORT.
        load_format: As `vllm serve` takes it.
        caches: Whether caches of compiled kernels are transferred.
    """

    folder: Path
    model: Path
    registry: str
    load_format: str
    caches: bool

    @contextmanager
    def run(self) -> Iterator[Start]:
        """Start it, and stop it at the end of the block."""
        port, log = _free_port(), self.folder / "log.txt"
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(port), env=self._environment(port), stdout=file, stderr=file, start_new_session=True
            )
        try:
            _await_health(port, process, log)
            healthy = time.monotonic() - started
            found = _INITIALISED.findall(log.read_text())
            yield Start(healthy, float(found[-1]))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)

    def _command(self, port: int) -> list[str]:
        vllm = str(ROOT / ".engines" / "vllm" / "bin" / "vllm")
        options = ["--max-model-len", "256", "--dtype", "bfloat16", "--load-format", self.load_format]
        return [vllm, "serve", str(self.model), "--host", "127.0.0.1", "--port", str(port), *options]

    def _environment(self, port: int) -> Mapping[str, str]:
        return os.environ | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
            "VLLM_USE_AOT_COMPILE": "0",
            "VLLM_CACHE_ROOT": str(self.folder / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "MX_SERVER_ADDRESS": self.registry,
            "MX_ARTIFACT_TRANSFER": str(int(self.caches)),
            "MX_ARTIFACT_READY_URL": f"http://127.0.0.1:{port}/health",
        }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _await_health(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"vllm serve ended with status {process.returncode}: {log.read_text()[-4000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"vllm serve did not answer within {DEADLINE:.0f} s: {log.read_text()[-4000:]}")


def _await_sources(registry: str, count: int) -> None:
    """Wait until weights and caches are offered."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with Client(registry) as client:
            if len(client.list_sources()) >= count:
                return
        time.sleep(0.2)
    raise AssertionError(f"not {count} materials were offered within {DEADLINE:.0f} s")


def measure(folder: Path, repetitions: int) -> list[Figure]:
    """Return the figures."""
    model = build_demo_model(folder / "model", scale="tiny")
    starts: dict[str, list[Start]] = {}
    with private_registry() as registry:
        first = Replica(folder / "first", model, registry, "modelexpress", caches=True)
        with first.run() as cold:
            starts["cold"] = [cold]
            _await_sources(registry, 2)
            for number in range(repetitions):
                for name, caches in (("weights from a peer", False), ("weights and caches from a peer", True)):
                    own = folder / f"second-{number}-{caches}"
                    with Replica(own, model, registry, "modelexpress", caches).run() as start:
                        starts.setdefault(name, []).append(start)
                    shutil.rmtree(own, ignore_errors=True)
        for _ in range(repetitions):
            with Replica(first.folder, model, "127.0.0.1:9", "auto", caches=False).run() as start:
                starts.setdefault("everything local and warm", []).append(start)
    return _figures(starts)


def _figures(starts: Mapping[str, list[Start]]) -> list[Figure]:
    figures = []
    warm = statistics.median(start.initialised for start in starts["everything local and warm"])
    for name, found in starts.items():
        took = statistics.median(start.initialised for start in found)
        target, met = ("", None) if name != "weights and caches from a peer" else ("≤ 1.15 ×", took <= 1.15 * warm)
        figures.append(Figure(f"vLLM, {name}: engine initialised in", took, "s", "locally warm", warm, target, met))
        healthy = statistics.median(start.healthy for start in found)
        figures.append(Figure(f"vLLM, {name}: server answers after", healthy, "s"))
    return figures


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_start.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mx-engine-start-") as folder:
        figures = measure(Path(folder), given.repetitions)
    machine = dataclasses.asdict(Machine.this())
    given.out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"starting vLLM on {Machine.this()}", figures))


if __name__ == "__main__":
    main()
