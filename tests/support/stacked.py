"""Real sources of stacked experts, and a target that loads some rows of them and tells how much memory it took."""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

import modelexpress as mx
from modelexpress.errors import NoSourceFound
from tests.support.children import Child, say

EXPERTS = 16
CHUNK = 64 << 10
LARGE_ROWS = 64


def stacked(layers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the experts of some layers, equal in every process; rows begin and end anywhere in chunks of 64 KiB.

    A row of `gate_up` is 24 KiB, one of `down` 6,550 bytes, and one of `wide` more than two chunks.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    model = {"embed": random(1000, 128).view(torch.float32)}
    for number in range(layers):
        model[f"layers.{number}.gate_up"] = random(EXPERTS, 96, 256).view(torch.bfloat16)
        model[f"layers.{number}.down"] = random(EXPERTS, 50, 131).view(torch.float8_e4m3fn)
        model[f"layers.{number}.wide"] = random(EXPERTS, 150_001)
        model[f"layers.{number}.norm"] = random(512)
    return model


def large() -> dict[str, torch.Tensor]:
    """Return one tensor of 512 MiB, in rows of 8 MiB."""
    return {"large": torch.arange(64 << 20).view(LARGE_ROWS, 1 << 20)}


class StackedSource(Child):
    """A process that publishes `stacked(layers, seed)`, or `large()` for no layers, until the block ends."""

    def __init__(
        self,
        registry: str,
        identity: mx.SourceIdentity,
        *,
        transport: str,
        layers: int = 1,
        seed: int = 0,
        chunk: int = CHUNK,
        uplink: int = 0,
    ) -> None:
        options = (registry, identity.model_name, transport, *map(str, (layers, seed, chunk, uplink)))
        super().__init__("tests.support.stacked", "source", *options, warm=True)
        fields = self.answer()
        self.worker_id: str = fields["worker_id"]
        self.endpoint: str = fields["endpoint"]

    def flip(self, name: str, byte: int) -> None:
        """Flip a bit of what is published, behind the back of the digests."""
        self.tell(f"{name} {byte}")
        assert self.line() == "flipped"


def load_large(registry: str, identity: mx.SourceIdentity, start: int, stop: int, storage: str = "") -> tuple[int, int]:
    """Load rows of `large()` in a process of its own; return the bytes that moved, and those its memory grew by."""
    options = (registry, identity.model_name, str(start), str(stop), storage)
    with Child("tests.support.stacked", "target", *options) as target:
        fields = target.answer()
    return int(fields["moved"]), int(fields["grown"])


def _serve(given: argparse.Namespace) -> None:
    fields = {"transport": given.transport, "worker_grpc_port": 0, "chunk_bytes": given.chunk}
    settings = mx.Settings.model_validate(fields | {"uplink_limit": given.uplink})
    model = stacked(given.layers, given.seed) if given.layers else large()
    identity = mx.SourceIdentity(model_name=given.name)
    with mx.publish(model, identity, registry=given.registry, settings=settings) as publication:
        assert publication.wait_ready(20)
        say(json.dumps({"worker_id": publication.worker_id, "endpoint": publication.endpoint}))
        for line in sys.stdin:
            name, byte = line.split()
            model[name].view(torch.uint8).flatten()[int(byte)] ^= 1
            say("flipped")


def _load(given: argparse.Namespace) -> None:
    rows = (given.start, given.stop)
    model = {"large": torch.empty(rows[1] - rows[0], 1 << 20, dtype=torch.int64, device="meta")}
    settings = mx.Settings.model_validate({"chunk_bytes": 1 << 20})
    identity, storage = mx.SourceIdentity(model_name=given.name), given.storage or None
    with suppress(NoSourceFound):
        # Modules that a load imports are not what is measured.
        mx.plan(model, identity, registry=given.registry, rows={"large": rows}, settings=settings)
    # From here on the kernel counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    report = mx.load(model, identity, registry=given.registry, rows={"large": rows}, storage=storage, settings=settings)
    grown = _peak() - before
    assert torch.equal(model["large"].flatten(), torch.arange(rows[0] << 20, rows[1] << 20))
    say(json.dumps({"moved": report.nbytes, "grown": grown}))


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main() -> None:
    """Be a source or a target."""
    parser = argparse.ArgumentParser()
    parts = parser.add_subparsers(dest="part", required=True)
    source, target = parts.add_parser("source"), parts.add_parser("target")
    for part in (source, target):
        part.add_argument("registry")
        part.add_argument("name")
    source.add_argument("transport")
    for name in ("layers", "seed", "chunk", "uplink"):
        source.add_argument(name, type=int)
    for name in ("start", "stop"):
        target.add_argument(name, type=int)
    target.add_argument("storage")
    given = parser.parse_args()
    (_serve if given.part == "source" else _load)(given)


if __name__ == "__main__":
    main()
