"""Real sources of caches for tests: processes that write a cache, seal it, and offer it until they are told to end."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.signing import Signer
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient, Worker
from modelexpress.settings import Settings
from tests.support.caches import KINDS, cache_files, write_cache
from tests.support.children import Child, say
from tests.support.waiting import wait_until


class ArtifactSource(Child):
    """A process that offers `cache_files(count, nbytes, seed)` until the block ends.

    Args:
        registry: HOST:PORT.
        identity: Base identity; only its model name is used.
        count: Files.
        nbytes: Bytes of each.
        options: Those of `main`, by name.
    """

    def __init__(self, registry: str, identity: SourceIdentity, count: int, nbytes: int, **options: object) -> None:
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        super().__init__(
            "tests.support.artifact_source", registry, identity.model_name, str(count), str(nbytes), *given
        )
        fields = self.answer()
        self.worker_id: str = fields["worker_id"]
        self.endpoint: str = fields["endpoint"]
        self.artifact_id: str = fields["artifact_id"]

    def wait_reader(self) -> None:
        """Wait until somebody reads from it."""
        with PeerClient(self.endpoint) as client:
            wait_until(lambda: any(reader.verified_bytes for reader in client.readers()))


def main() -> None:
    """Offer a cache until standard input says a line or ends."""
    parser = argparse.ArgumentParser()
    for name in ("registry", "name"):
        parser.add_argument(name)
    for name in ("count", "nbytes"):
        parser.add_argument(name, type=int)
    parser.add_argument("--kind", default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--uplink", type=int, default=0)
    parser.add_argument("--heartbeat", type=float, default=30.0)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--lie", default="")
    given = parser.parse_args()
    settings = Settings.model_validate(
        {
            "worker_grpc_port": 0,
            "transport": given.transport,
            "chunk_bytes": 1 << 20,
            "uplink_limit": given.uplink,
            "heartbeat_interval": given.heartbeat,
        }
    )
    kind = KINDS[given.kind]
    with tempfile.TemporaryDirectory() as folder:
        root = write_cache(Path(folder), cache_files(given.count, given.nbytes, given.seed))
        snapshot = take_snapshot(kind, root, 1 << 20)
    if given.lie == "content":
        snapshot.arena[snapshot.offsets[0]] ^= 1
    signer = Signer.from_file(given.key) if given.key else None
    identity = kind.identity(SourceIdentity(model_name=given.name))
    with (
        Worker(given.registry, settings=settings) as worker,
        offer(snapshot, identity, worker=worker, signer=signer, settings=settings) as publication,
    ):
        assert publication.wait_ready(20)
        fields = {"worker_id": worker.worker_id, "endpoint": publication.endpoint}
        say(json.dumps(fields | {"artifact_id": snapshot.manifest.artifact_id}))
        sys.stdin.readline()


if __name__ == "__main__":
    main()
