"""Materials and worker servers for tests: real arenas and real ports, no torch."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from modelexpress.identity import SourceIdentity
from modelexpress.memory import HostArena
from modelexpress.peer import Material, PeerClient, file_specs
from modelexpress.peer.server import WorkerServer
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Scope
from modelexpress.transfer.seal import seal
from modelexpress.transport import Opened, Reader, Run, available, open_first
from modelexpress.wire.peer import LeaseGrant
from modelexpress.wire.records import TensorSpec

SETTINGS = Settings(worker_grpc_port=0, chunk_bytes=64 << 10)
TENSOR_BYTES = 64


def new_identity() -> SourceIdentity:
    """Return an identity that no other test has."""
    return SourceIdentity(model_name=f"test/{uuid.uuid4()}")


def make_material(
    tensors: int = 4,
    *,
    identity: SourceIdentity | None = None,
    name: str = "tensor.{}",
    files: Mapping[str, bytes] | None = None,
    rank: int = 0,
    seed: int = 0,
) -> Material:
    """Return a material of tensors of 16 floats each, with random content."""
    arena = HostArena(tensors * TENSOR_BYTES)
    content = np.random.default_rng(seed).bytes(tensors * TENSOR_BYTES)
    arena.take(len(content))[:] = content
    specs = [
        TensorSpec(name.format(i), "float32", (16,), (1,), 0, i * TENSOR_BYTES, TENSOR_BYTES, i % 3 != 2)
        for i in range(tensors)
    ]
    files = files or {}
    manifest = seal(
        specs, [arena.region], scope=Scope.MODULE, chunk_bytes=SETTINGS.chunk_bytes, files=file_specs(files)
    )
    return Material(identity or new_identity(), rank, manifest, (arena.region,), (arena,), files)


@contextmanager
def worker_server(
    *materials: Material, worker_id: str = "worker", port: int = 0, lease_ttl: float = 30.0
) -> Iterator[WorkerServer]:
    """Serve materials on a port of the loopback interface over every transport that works."""
    transports = available(SETTINGS).transports
    with WorkerServer(worker_id, transports, port=port, lease_ttl=lease_ttl) as server:
        for material in materials:
            server.shelf.add(material)
        yield server


def client_of(server: WorkerServer) -> PeerClient:
    """Return a client of a worker server; a context manager."""
    return PeerClient(f"127.0.0.1:{server.port}")


def acquire(client: PeerClient, material: Material, worker_id: str = "worker", reader: str = "reader") -> LeaseGrant:
    """Acquire a lease."""
    return client.acquire(material.identity.source_id, worker_id, reader, "host")


def open_transport(grant: LeaseGrant, name: str) -> Opened:
    """Open what a lease grants over the transport of that name."""
    transports = [transport for transport in available(SETTINGS).transports if transport.name == name]
    return open_first(transports, grant.transports, grant.lease_id)


def read_all(reader: Reader, material: Material) -> bytes:
    """Return the bytes of all tensors of a material, read over a transport."""
    content = np.zeros(material.manifest.total_bytes, np.uint8)
    reader.read([Run(0, 0, content.ctypes.data, len(content))]).wait(10)
    return content.tobytes()
