"""A target in a process of its own, which passes on what it receives and becomes a source: a link of a chain."""

import argparse
import json
import sys
from typing import Any

import torch

import modelexpress as mx
from tests.support.children import Child, say
from tests.support.sources import tensors


class ChainTarget(Child):
    """Starts the process, without waiting for it; it loads when it is told to.

    Args:
        registry: HOST:PORT.
        identity: Of what `tests.support.sources` publishes.
        megabytes: Of that.
        transport: The only one to use.
        gpu: Number of the GPU that the process sees, and that gets the model; None: host memory.
        uplink: Bytes a second that it passes on at most; 0: as many as it can.
    """

    def __init__(
        self,
        registry: str,
        identity: mx.SourceIdentity,
        megabytes: int,
        transport: str,
        gpu: int | None = None,
        uplink: int = 0,
    ) -> None:
        device = "cpu" if gpu is None else "cuda"
        options = (registry, identity.model_name, str(megabytes), transport, device, str(uplink))
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        super().__init__("tests.support.chain_target", *options, environment=environment, warm=gpu is None)
        self._worker_id = ""

    @property
    def worker_id(self) -> str:
        """Its worker's; it is there once the process is ready."""
        if not self._worker_id:
            self._worker_id = self.answer()["worker_id"]
        return self._worker_id

    def start(self) -> None:
        """Let it load once it is ready, without waiting for that."""
        assert self.worker_id
        self.tell("load")

    def reach(self, tenths: int) -> None:
        """Wait until so many tenths of the load are verified."""
        while self.answer()["tenths"] < tenths:
            pass

    def report(self) -> dict[str, Any]:
        """Wait until it has loaded, and return its report; `right` says whether every tensor is."""
        while "right" not in (found := self.answer()):
            pass
        return dict(found)


def main() -> None:
    """Load when told, say how far it is after every tenth, and stay until standard input ends."""
    parser = argparse.ArgumentParser()
    for name in ("registry", "name", "megabytes", "transport", "device", "uplink"):
        parser.add_argument(name)
    given = parser.parse_args()
    settings = mx.Settings.model_validate(
        {
            "transport": given.transport,
            "chunk_bytes": 1 << 20,
            "worker_grpc_port": 0,
            "uplink_limit": given.uplink,
        }
    )
    right = tensors(int(given.megabytes))
    model = {name: torch.empty_like(tensor, device="meta") for name, tensor in right.items()}
    tenths = 0

    def progress(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            say(json.dumps({"tenths": tenths}))

    with mx.Worker(given.registry, settings=settings) as worker:
        say(json.dumps({"worker_id": worker.worker_id}))
        sys.stdin.readline()
        identity = mx.SourceIdentity(model_name=given.name)
        report = mx.load(
            model,
            identity,
            registry=given.registry,
            device=given.device,
            worker=worker,
            settings=settings,
            progress=progress,
        )
        same = all(torch.equal(model[name].cpu(), tensor) for name, tensor in right.items())
        say(json.dumps(json.loads(report.json()) | {"right": same}))
        sys.stdin.read()


if __name__ == "__main__":
    main()
