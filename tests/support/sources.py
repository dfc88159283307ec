"""Real sources for tests: processes of their own that publish tensors anyone can compute again."""

import argparse
import json
import sys

import torch

import modelexpress as mx
from tests.support.children import Child, say


def tensors(megabytes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return tensors of one MiB each, equal in every process."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{number:04}": torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, generator=generator)
        for number in range(megabytes)
    }


class SourceProcess(Child):
    """A process that publishes `tensors(megabytes, seed)` until the block ends."""

    def __init__(
        self,
        registry: str,
        identity: mx.SourceIdentity,
        megabytes: int,
        *,
        transport: str,
        seed: int = 0,
        uplink: int = 0,
    ) -> None:
        options = (registry, identity.model_name, str(megabytes), transport, str(seed), str(uplink))
        super().__init__("tests.support.sources", *options, warm=True)
        fields = self.answer()
        self.worker_id: str = fields["worker_id"]
        self.endpoint: str = fields["endpoint"]


def main() -> None:
    """Publish until standard input ends."""
    parser = argparse.ArgumentParser()
    for name in ("registry", "name", "megabytes", "transport", "seed", "uplink"):
        parser.add_argument(name)
    given = parser.parse_args()
    chosen = {"transport": given.transport, "worker_grpc_port": 0, "chunk_bytes": 1 << 20, "uplink_limit": given.uplink}
    settings = mx.Settings.model_validate(chosen)
    identity = mx.SourceIdentity(model_name=given.name)
    model = tensors(int(given.megabytes), int(given.seed))
    with mx.publish(model, identity, registry=given.registry, settings=settings) as publication:
        assert publication.wait_ready(20)
        say(json.dumps({"worker_id": publication.worker_id, "endpoint": publication.endpoint}))
        sys.stdin.read()


if __name__ == "__main__":
    main()
