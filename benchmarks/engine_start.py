"""How long a replica of an engine takes to come up: cold, with weights from a peer, with caches too, and locally warm.

    python -m benchmarks.engine_start --engine vllm        # or vllm_ahead, or sglang; after `make engines`

Every replica is a server as a user starts it, with a folder of caches of its own, and all but the first one start
beside the first one. "Locally warm" is a second replica started again, with its own caches and weights. Compilation is
what takes long here, so the model is tiny. SGLang compiles nothing on a processor without AMX: there its caches have
nothing in them, and are left out. What vLLM compiles ahead of time, as it does by itself, does not load again on a
processor: `vllm_ahead` measures that.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.engine_replicas import DEADLINE, REPLICAS, Replica, Start
from benchmarks.saving import RESULTS, show_and_save
from modelexpress.cli.child import private_registry
from modelexpress.cli.demo_model import build_demo_model
from modelexpress.cli.figure import Figure
from modelexpress.client import Client

_NOBODY = "127.0.0.1:9"


def await_sources(registry: str, count: int) -> None:
    """Wait until weights and caches are offered."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with Client(registry) as client:
            if len(client.list_sources()) >= count:
                return
        time.sleep(0.2)
    raise AssertionError(f"not {count} materials were offered within {DEADLINE:.0f} s")


def measure(kind: type[Replica], folder: Path, repetitions: int) -> list[Figure]:
    """Return the figures of one engine."""
    model = build_demo_model(folder / "model", scale="tiny")
    starts: dict[str, list[Start]] = {}
    with private_registry() as registry:
        first = kind(folder / "first", model, registry, from_peer=True, caches=kind.filled > 0)
        with first.run() as cold:
            starts["cold"] = [cold]
            await_sources(registry, 1 + kind.filled)
            for number in range(repetitions):
                for name, start in _second_replicas(kind, folder / f"second-{number}", model, registry):
                    starts.setdefault(name, []).append(start)
    return _figures(kind, starts)


def _second_replicas(kind: type[Replica], folder: Path, model: Path, registry: str) -> Iterator[tuple[str, Start]]:
    """Start a second replica in each way beside the first one, and the last of them again with what it has then."""
    ways = {"weights from a peer": False, "weights and caches from a peer": True}
    for name, caches in ways.items() if kind.filled else list(ways.items())[:1]:
        own = folder / str(caches)
        with kind(own, model, registry, from_peer=True, caches=caches).run() as start:
            yield name, start
    with kind(own, model, _NOBODY, from_peer=False, caches=False).run() as start:
        yield "everything local and warm", start
    shutil.rmtree(folder, ignore_errors=True)


def _figures(kind: type[Replica], starts: Mapping[str, list[Start]]) -> list[Figure]:
    figures = []
    warm = statistics.median(start.initialised for start in starts["everything local and warm"])
    for name, found in starts.items():
        took = statistics.median(start.initialised for start in found)
        target, met = ("", None) if name != "weights and caches from a peer" else ("≤ 1.15 ×", took <= 1.15 * warm)
        what = f"{kind.engine}, {name}"
        figures.append(Figure(f"{what}: {kind.stage} in", took, "s", "locally warm", warm, target, met))
        for part in ("caches", "weights"):
            if brought := [one for start in found if (one := getattr(start, part)) is not None]:
                seconds = statistics.median(one.seconds for one in brought)
                figures.append(Figure(f"{what}: {part}, {brought[0].nbytes / 1e6:.1f} MB, brought in", seconds, "s"))
        healthy = statistics.median(start.healthy for start in found)
        figures.append(Figure(f"{what}: server answers after", healthy, "s"))
    return figures


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=tuple(REPLICAS), default="vllm")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mx-engine-start-") as folder:
        figures = measure(REPLICAS[given.engine], Path(folder), given.repetitions)
    show_and_save(f"starting {given.engine}", figures, given.out or RESULTS / f"engine_start_{given.engine}.json")


if __name__ == "__main__":
    main()
