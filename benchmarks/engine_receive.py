"""How long a vLLM server takes to receive the weights of another one, with a model that is large enough to tell.

    python -m benchmarks.engine_receive        # after `make engines`; some four minutes, 8 GiB of memory and 3 of disk

Both are servers as a user starts them, without compilation, which would not change this. What is timed is what the
second one's log says: everything from the first question to the registry to the last digest.

With `--existing FOLDER` the client of the package index does the same, where that folder has it and what it needs:

    pip install --no-deps --target FOLDER modelexpress==0.7.0 google-crc32c nixl-cu13==1.5.1
"""

import argparse
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import existing_on_processors
from benchmarks.engine_replicas import Brought, Start, VllmReplica, free_port
from benchmarks.engine_start import await_sources
from benchmarks.saving import RESULTS, show_and_save
from modelexpress.cli.child import private_registry
from modelexpress.cli.demo_model import build_demo_model
from modelexpress.cli.figure import Figure
from modelexpress.cli.speed import filled_arena, fresh_copy_seconds

_EXISTING_SECONDS = 1.10
"""What the client of the package index needed for 1.21 GB, between two such servers on such a machine."""
_WEIGHTS = ("model*.safetensors", "*.index.json")


class EagerReplica(VllmReplica):
    """`vllm serve` that compiles nothing."""

    def command(self) -> list[str]:
        return [*super().command(), "--enforce-eager"]


class ExistingReplica(EagerReplica):
    """The same with the client of the package index, which is in a folder `existing` beside that of the replica."""

    def variables(self) -> Mapping[str, str]:
        path = [str(self.folder.parent / "plugin"), str(self.folder.parent / "existing")]
        ports = {name: str(free_port()) for name in ("MX_WORKER_GRPC_PORT", "MX_METADATA_PORT")}
        named = {"MODEL_EXPRESS_URL": self.registry, "MX_WORKER_HOST": "127.0.0.1", "MX_ARTIFACT_READY_URL": ""}
        return {**super().variables(), "PYTHONPATH": ":".join(path), **ports, **named}


def build_model(folder: Path) -> Path:
    """Write a Llama of 555 million random weights, 1.11 GB, and return its folder."""
    tiny = build_demo_model(folder / "tiny", scale="tiny")
    config = LlamaConfig.from_pretrained(
        tiny,
        vocab_size=30_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=11,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    shutil.copytree(tiny, folder / "model", ignore=shutil.ignore_patterns(*_WEIGHTS))
    model.save_pretrained(folder / "model")
    return folder / "model"


def measure(folder: Path, repetitions: int, existing: Path | None) -> list[Figure]:
    """Return the figures; those of the client of the package index, too, where it is in a folder `existing`."""
    model = build_model(folder)
    found: list[Brought] = []
    for start, _ in _second_replicas(EagerReplica, folder, model, repetitions):
        assert start.weights is not None, "the weights came from a peer"
        found.append(start.weights)
    figures = _figures(found)
    if existing is not None:
        (folder / "existing").symlink_to(existing.resolve())
        existing_on_processors.install(folder / "plugin")
        logs = [log for _, log in _second_replicas(ExistingReplica, folder, model, repetitions)]
        figures += _existing_figures(logs, found)
    return figures


def _second_replicas(
    kind: type[EagerReplica], folder: Path, model: Path, repetitions: int
) -> Iterator[tuple[Start, str]]:
    """Start second replicas beside a first one; yield how each started, and its log."""
    with ExitStack() as stack:
        registry = stack.enter_context(private_registry())
        first = kind(folder / f"{kind.__name__}-first", model, registry, from_peer=True, caches=False)
        stack.enter_context(first.run())
        await_sources(registry, 1)
        for number in range(repetitions):
            own = folder / f"{kind.__name__}-{number}"
            with kind(own, model, registry, from_peer=True, caches=False).run() as start:
                yield start, (own / "log.txt").read_text()


def _existing_figures(logs: list[str], ours: list[Brought]) -> list[Figure]:
    seconds = statistics.median(one.seconds for one in ours)
    clocks = {
        "by its own clock, into memory that was written before": existing_on_processors.RECEIVED,
        "with making that memory ready": existing_on_processors.PREPARED,
    }
    figures = []
    for name, pattern in clocks.items():
        took = statistics.median(float(re.findall(pattern, log)[-1]) for log in logs)
        what = f"vLLM, the client of the package index here, {name}"
        figures.append(Figure(what, took, "s", "ours", seconds, "ours ≤ 0.5 ×", seconds <= took / 2))
    return figures


def _figures(found: list[Brought]) -> list[Figure]:
    nbytes = round(found[0].nbytes)
    seconds = statistics.median(one.seconds for one in found)
    existing = (
        "the client of the package index: 1.21 GB on such a machine",
        _EXISTING_SECONDS,
        "≤ 0.5 ×",
        seconds <= _EXISTING_SECONDS / 2,
    )
    what = f"vLLM, {nbytes / 1e9:.2f} GB from another server"
    figures = [Figure(f"{what}: received and verified in", seconds, "s", *existing)]
    for stage in found[0].stages:
        took = statistics.median(one.stages[stage] for one in found)
        figures.append(Figure(f"{what}: {stage}", took, "s"))
    with filled_arena(nbytes) as source:
        fresh = statistics.median(fresh_copy_seconds(source, nbytes) for _ in range(len(found)))
    return [*figures, Figure("one thread copies as much into fresh pages", fresh, "s")]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--existing", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_receive.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mx-engine-receive-") as folder:
        figures = measure(Path(folder), given.repetitions, given.existing)
    show_and_save("weights between vLLM servers", figures, given.out)


if __name__ == "__main__":
    main()
