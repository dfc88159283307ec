"""Real sources in device memory for tests: processes that see one GPU, or none."""

import argparse
import json
import sys

import torch

import modelexpress as mx
from tests.support.children import Child, say


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


class DeviceSource(Child):
    """A process that publishes `device_tensors` from the GPU that it alone sees, or from host memory.

    Args:
        registry: HOST:PORT.
        identity: Its name is what counts.
        visible: CUDA_VISIBLE_DEVICES of the process; empty: host memory.
        allocator: PYTORCH_CUDA_ALLOC_CONF of the process.
    """

    def __init__(self, registry: str, identity: mx.SourceIdentity, visible: str, allocator: str = "") -> None:
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        if allocator:
            environment |= {"PYTORCH_CUDA_ALLOC_CONF": allocator, "PYTORCH_ALLOC_CONF": allocator}
        place = "cuda" if visible else "cpu"
        options = (registry, identity.model_name, place)
        super().__init__("tests.support.device_sources", *options, environment=environment)
        self.worker_id: str = self.answer()["worker_id"]

    def damage(self, name: str) -> None:
        """Let the process change a tensor after its publication."""
        self.tell(name)
        assert self.line()


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
        say(json.dumps({"worker_id": publication.worker_id}))
        for line in sys.stdin:
            model[line.strip()].view(-1)[7] += 1
            torch.cuda.synchronize()
            say("changed")


if __name__ == "__main__":
    main()
