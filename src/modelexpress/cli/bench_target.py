"""The target of a benchmark, a process of its own: loads again and again, and measures the limit in between.

For each line on standard input it does one round, and prints one JSON line. The first round touches memory that the
machine has not given out before, and is for the caller to drop.
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch

import modelexpress as mx
from modelexpress.cli.bench_source import made_up_identity, tensor_name, tensor_sizes
from modelexpress.cli.plain_sockets import receive_seconds
from modelexpress.cli.speed import filled_arena, fresh_copy_seconds
from modelexpress.settings import Settings
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import Journal, LoadReport
from modelexpress.weights.strategies import PeerStrategy
from modelexpress.weights.target import Target

_COPIED = 1 << 30
"""Bytes that the memory copy reads, far beyond any cache."""


def load_once(registry: str, nbytes: int, count: int, settings: Settings, verify: bool) -> LoadReport:
    """Load made-up weights into tensors without memory, and forget them."""
    sizes = tensor_sizes(nbytes, count)
    model = {
        tensor_name(number): torch.empty(size, dtype=torch.uint8, device="meta") for number, size in enumerate(sizes)
    }
    identity = made_up_identity(nbytes, count)
    if verify:
        return mx.load(model, identity, registry=registry, settings=settings)
    unchecked = PeerStrategy(identity, 0, registry, settings, verify=False)
    return run_strategies(Target(model), [unchecked], Journal())


def limit_of(kind: str, nbytes: int, sender: str, streams: int) -> Callable[[], float | None]:
    """Return what measures the seconds that `nbytes` take at the limit.

    Args:
        kind: "local": one thread copies memory. "tcp": plain sockets. "": nothing is measured.
        nbytes: How many.
        sender: HOST:PORT of the plain sender, for "tcp".
        streams: Connections, for "tcp".
    """
    if kind == "local":
        source = filled_arena(min(nbytes, _COPIED))
        return lambda: fresh_copy_seconds(source, nbytes)
    if kind == "tcp":
        return lambda: receive_seconds(sender, nbytes, streams)
    return lambda: None


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("registry")
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--limit", choices=["local", "tcp", ""], default="")
    parser.add_argument("--sender", default="")
    parser.add_argument("--unverified", action="store_true")
    chosen = parser.parse_args()
    settings = Settings.read().model_copy(update={"transport": chosen.transport})
    limit = limit_of(chosen.limit, chosen.bytes, chosen.sender, settings.tcp_streams)
    for _ in sys.stdin:
        seconds = limit()
        report = load_once(chosen.registry, chosen.bytes, chosen.tensors, settings, not chosen.unverified)
        line = {"limit_seconds": seconds, "report": json.loads(report.json())}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
