"""How long the first call of compiled code takes in a fresh process: cold, with caches from a peer, locally warm.

    python -m benchmarks.first_call --device cuda

A transformer block under torch.compile and, on a GPU, a set of Triton kernels that are tuned at their first call. Each
start is a process of its own. "Cold" has empty caches and shares them afterwards; "from a peer" has empty caches, and
brings those of the first before it calls anything; "locally warm" has the first one's caches again.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PARTS = {"block": "transformer block under torch.compile", "kernels": "tuned Triton kernels"}


@dataclasses.dataclass(frozen=True)
class FirstCall:
    """What one start took, in seconds; nothing is brought where the caches are local.

    Args:
        bringing: From the question to the installed caches.
        parts: First call of each part.
        checksums: Of what each part computed.
        machine: What computed.
    """

    bringing: float
    parts: Mapping[str, float]
    checksums: Mapping[str, float]
    machine: str


@contextmanager
def first_call(
    device: str, caches: Path, registry: str, *, bring: bool = False, share: bool = False
) -> Iterator[FirstCall]:
    """Make the calls in a fresh process, which offers its caches until the end of the block if it shares."""
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "MX_SERVER_ADDRESS": registry,
        "MX_ARTIFACT_TRANSFER": "1",
        "MX_WORKER_GRPC_PORT": "0",
    }
    options = [f"--device={device}", *(["--bring"] if bring else []), *(["--share"] if share else [])]
    command = [sys.executable, "-m", "benchmarks.first_call_process", *options]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None, "a pipe was asked for"
        assert process.stdout is not None, "a pipe was asked for"
        try:
            line = process.stdout.readline()
            assert line, "the process ended before it had made its calls: its error is above"
            yield FirstCall(**json.loads(line))
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()


def measure(device: str, folder: Path, repetitions: int) -> tuple[list[Figure], str]:
    """Return the figures, and what computed."""
    starts: dict[str, list[FirstCall]] = {"cold": [], "from a peer": [], "locally warm": []}
    with private_registry() as registry, first_call(device, folder / "first", registry, share=True) as cold:
        starts["cold"].append(cold)
        for number in range(repetitions):
            with first_call(device, folder / f"other-{number}", registry, bring=True) as start:
                starts["from a peer"].append(start)
            with first_call(device, folder / "first", registry) as start:
                starts["locally warm"].append(start)
    for found in starts.values():
        assert all(start.checksums == cold.checksums for start in found), "the same code computes the same"
    return [figure for part in cold.parts for figure in _figures(part, starts)] + _bringing(starts), cold.machine


def _figures(part: str, starts: Mapping[str, list[FirstCall]]) -> list[Figure]:
    median = {name: statistics.median(start.parts[part] for start in found) for name, found in starts.items()}
    warm, figures = median["locally warm"], list[Figure]()
    for name, took in median.items():
        target, met = ("≤ 1.15 ×", took <= 1.15 * warm) if name == "from a peer" else ("", None)
        figures.append(Figure(f"{_PARTS[part]}, {name}: first call", took, "s", "locally warm", warm, target, met))
    return figures


def _bringing(starts: Mapping[str, list[FirstCall]]) -> list[Figure]:
    took = statistics.median(start.bringing for start in starts["from a peer"])
    return [Figure("caches brought, before the first call", took, "s")]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mx-first-call-") as folder:
        figures, computed_by = measure(given.device, Path(folder), given.repetitions)
    machine = {**dataclasses.asdict(Machine.this()), "computed by": computed_by}
    out = given.out or RESULTS / f"first_call_{given.device}.json"
    out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in figures]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"first calls on {computed_by}, {Machine.this()}", figures))


if __name__ == "__main__":
    main()
