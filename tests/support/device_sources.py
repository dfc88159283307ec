"""Real sources in device memory for tests: processes that see one GPU, or none."""

import argparse
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

import torch

import modelexpress as mx


def device_tensors(place: str) -> dict[str, torch.Tensor]:
    """Return tensors of many sizes and layouts, equal in every process."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16).to(place)

    tensors = {f"large.{number}": random(3000, 1 << 10) for number in range(12)}
    tensors |= {f"small.{number}": random(number) for number in range(300)}
    tensors["permuted"] = random(64, 128).t()
    tensors["scalar"] = random()
    return tensors


class DeviceSource:
    """A process that publishes `device_tensors` from the GPU that it alone sees, or from host memory.

    Args:
        registry: HOST:PORT.
        identity: Its name is what counts.
        visible: CUDA_VISIBLE_DEVICES of the process; empty: host memory.
        allocator: PYTORCH_CUDA_ALLOC_CONF of the process.
    """

    def __init__(self, registry: str, identity: mx.SourceIdentity, visible: str, allocator: str = "") -> None:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible}
        if allocator:
            environment |= {"PYTORCH_CUDA_ALLOC_CONF": allocator, "PYTORCH_ALLOC_CONF": allocator}
        place = "cuda" if visible else "cpu"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.device_sources", registry, identity.model_name, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the source ended with status {self.process.wait(20)}"
        self.worker_id: str = json.loads(line)["worker_id"]

    def damage(self, name: str) -> None:
        """Let the process change a tensor after its publication."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Publish until standard input ends; each line names a tensor to change."""
    parser = argparse.ArgumentParser()
    for name in ("registry", "name", "place"):
        parser.add_argument(name)
    given = parser.parse_args()
    model = device_tensors(given.place)
    settings = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20)
    identity = mx.SourceIdentity(model_name=given.name)
    with mx.publish(model, identity, registry=given.registry, settings=settings) as publication:
        assert publication.wait_ready(30)
        sys.stdout.write(json.dumps({"worker_id": publication.worker_id}) + "\n")
        sys.stdout.flush()
        for line in sys.stdin:
            model[line.strip()].view(-1)[7] += 1
            torch.cuda.synchronize()
            sys.stdout.write("changed\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
