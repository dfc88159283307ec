"""The source of a benchmark, a process of its own: publishes made-up tensors, or a checkpoint folder.

It prints one JSON line when it is ready, and ends when its standard input ends.
"""

import argparse
import json
import sys
import threading
from pathlib import Path

import torch

import modelexpress as mx
from modelexpress.memory import HostArena, aligned

_GRAIN = 256
"""Sizes of tensors are multiples of this many bytes, as those of real weights are."""


def tensor_sizes(nbytes: int, count: int) -> list[int]:
    """Return the bytes of each of `count` tensors that are `nbytes` together, rounded up to whole grains."""
    share = -(-nbytes // count)
    return [-(-share // _GRAIN) * _GRAIN] * count


def tensor_name(number: int) -> str:
    """Return the name of a made-up tensor."""
    return f"layers.{number}.weight"


def made_up_identity(nbytes: int, count: int) -> mx.SourceIdentity:
    """Return the identity of made-up weights."""
    return mx.SourceIdentity(model_name=f"benchmark/{count}-tensors-{nbytes}-bytes", dtype="uint8")


def made_up_tensors(nbytes: int, count: int) -> dict[str, torch.Tensor]:
    """Return tensors that live in an arena already, so that publishing them does not move them."""
    sizes = tensor_sizes(nbytes, count)
    arena = HostArena(sum(aligned(size) for size in sizes))
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, generator=generator)
    tensors = {}
    for number, size in enumerate(sizes):
        tensor = torch.frombuffer(arena.take(size), dtype=torch.uint8)
        for start in range(0, size, len(pattern)):
            tensor[start : start + len(pattern)] = pattern[: size - start]
        tensors[tensor_name(number)] = tensor
    return tensors


def run_source(registry: str, nbytes: int, count: int, folder: Path | None) -> None:
    """Be a source until standard input ends."""
    before = threading.active_count()
    if folder is not None:
        identity = mx.SourceIdentity(model_name=folder.name)
        publication = mx.publish_folder(folder, identity, registry=registry)
    else:
        identity = made_up_identity(nbytes, count)
        publication = mx.publish(made_up_tensors(nbytes, count), identity, registry=registry)
    with publication:
        publication.wait_ready(60)
        ready = {"source_id": publication.source_id, "threads": threading.active_count() - before}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("registry")
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    run_source(arguments.registry, arguments.bytes, arguments.tensors, arguments.folder)
