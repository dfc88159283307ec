"""Real sources for tests: processes of their own that publish tensors anyone can compute again."""

import argparse
import json
import subprocess
import sys
from types import TracebackType
from typing import Self

import torch

import modelexpress as mx


def tensors(megabytes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return tensors of one MiB each, equal in every process."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{number:04}": torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, generator=generator)
        for number in range(megabytes)
    }


class SourceProcess:
    """A process that publishes `tensors(megabytes, seed)` until the block ends."""

    def __init__(
        self, registry: str, identity: mx.SourceIdentity, megabytes: int, *, transport: str, seed: int = 0
    ) -> None:
        options = [registry, identity.model_name, str(megabytes), transport, str(seed)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.sources", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        fields = json.loads(self.process.stdout.readline())
        self.worker_id: str = fields["worker_id"]
        self.endpoint: str = fields["endpoint"]

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Publish until standard input ends."""
    parser = argparse.ArgumentParser()
    for name in ("registry", "name", "megabytes", "transport", "seed"):
        parser.add_argument(name)
    given = parser.parse_args()
    settings = mx.Settings.model_validate({"transport": given.transport, "worker_grpc_port": 0, "chunk_bytes": 1 << 20})
    identity = mx.SourceIdentity(model_name=given.name)
    model = tensors(int(given.megabytes), int(given.seed))
    with mx.publish(model, identity, registry=given.registry, settings=settings) as publication:
        assert publication.wait_ready(20)
        fields = {"worker_id": publication.worker_id, "endpoint": publication.endpoint}
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
