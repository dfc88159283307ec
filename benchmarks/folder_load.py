"""Loads a checkpoint folder in one way, once for each line on standard input, and prints the seconds of each.

A process of its own, so that what one way leaves in memory does not help the next one.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import modelexpress as mx
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import Journal
from modelexpress.weights.strategies import StorageStrategy
from modelexpress.weights.target import Target

Load = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """A way of loading: its name for people, whether it reads the files, and what makes the loading function."""

    name: str
    reads_files: bool
    prepare: Callable[[Path, str], Load]


def _meta_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with Checkpoint.open(folder) as checkpoint:
        return {
            tensor.name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
            for tensor in checkpoint.tensors.values()
        }


def _from_peer(folder: Path, registry: str) -> Load:
    identity = mx.SourceIdentity(model_name=folder.name)
    return lambda: mx.load(_meta_tensors(folder), identity, registry=registry)


def _from_storage(folder: Path, registry: str) -> Load:
    return lambda: run_strategies(Target(_meta_tensors(folder)), [StorageStrategy(folder)], Journal())


def _with_safetensors(folder: Path, registry: str) -> Load:
    from safetensors import safe_open

    def load() -> dict[str, torch.Tensor]:
        tensors = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                # Cloned, because a tensor that is only mapped has not been read yet.
                tensors.update({name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
        return tensors

    return load


def _with_transformers(folder: Path, registry: str) -> Load:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    def load() -> object:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        # Touched, because weights that are only mapped have not been read yet.
        return sum(int(parameter.view(torch.int16).max()) for parameter in model.parameters())

    return load


WAYS = {
    "peer": Way("modelexpress from a peer", False, _from_peer),
    "storage": Way("modelexpress from storage", True, _from_storage),
    "safetensors": Way("safetensors, get and clone", True, _with_safetensors),
    "transformers": Way("transformers, from_pretrained", True, _with_transformers),
}


def main() -> None:
    """Load once for each line that arrives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("registry")
    chosen = parser.parse_args()
    load = WAYS[chosen.way].prepare(chosen.folder, chosen.registry)
    for _ in sys.stdin:
        started = time.perf_counter()
        load()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
