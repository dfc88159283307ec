"""How long the first replica of TensorRT-LLM is held up when nobody has its weights, and it does not wait.

Run `python -m benchmarks.trtllm_refusal`; it takes a minute, and writes benchmarks/results/trtllm_refusal.json. Each
figure is the slowest first call of a few processes of their own: what the call imports is part of it, torch and the
names that the engine has imported are not. Where not even a registry answers, it is given half a second.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from modelexpress.cli.child import child, private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.engines.trtllm import MxModelLoader
from modelexpress.errors import ModelExpressError
from modelexpress.trtllm_live_transfer import MxLiveWeightLoader

RESULTS = Path(__file__).parent / "results" / "trtllm_refusal.json"
NOWHERE = "127.0.0.1:1"
AIM = 0.2
"""Seconds."""


class Identity:
    """What the engine's own identity has to have."""

    transform_abi_id = "benchmark"

    def to_dict(self) -> dict[str, str]:
        """Return its fields."""
        return {"model_name": "benchmark", "transform_abi_id": self.transform_abi_id}


def refuse(way: str, registry: str) -> float:
    """Return the seconds that the first call of this process takes."""
    os.environ["MX_SOURCE_QUERY_TIMEOUT"] = "0"
    model = torch.nn.Linear(64, 64)
    delegated = MxModelLoader(
        model_config=None,
        load_config=None,
        checkpoint_loader=None,
        checkpoint_dir="benchmark",
        native_loader_kwargs={},
        mapping=None,
        source_identity=Identity(),
        prepare_post_transform_receiver=lambda model: None,
        transform_protocol_version=1,
        p2p_enabled=True,
        mx_server_url=registry,
    )
    started = time.perf_counter()
    with contextlib.suppress(ModelExpressError):  # what the engine would load natively after it is not installed
        if way == "live":
            MxLiveWeightLoader(registry).load_weights("benchmark", model=model)
        else:
            delegated.load_model(model)
    return time.perf_counter() - started


def measure(rounds: int) -> Iterator[Figure]:
    """Yield every figure."""
    with private_registry() as registry:
        for way in ("live", "delegated"):
            slowest = max(_first_call(way, registry) for _ in range(rounds))
            yield Figure(f"{way}, no source", slowest, "s", target=f"≤ {AIM:g} s", met=slowest <= AIM)
            yield Figure(f"{way}, no registry", max(_first_call(way, NOWHERE) for _ in range(rounds)), "s")


def _first_call(way: str, registry: str) -> float:
    options = ("-m", "benchmarks.trtllm_refusal", "--once", way, "--registry", registry)
    with child(*options) as process:
        return float(process.answer()["seconds"])


def main() -> None:
    """Measure, print, and write it down; or make one call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--once", choices=("live", "delegated"), help=argparse.SUPPRESS)
    parser.add_argument("--registry", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps({"seconds": refuse(chosen.once, chosen.registry)}), flush=True)
        return
    machine = Machine.this()
    figures = list(measure(chosen.rounds))
    Console().print(figure_table(f"the first refusal on {machine}", figures))
    result = {"machine": dataclasses.asdict(machine), "figures": [figure.fields() for figure in figures]}
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
