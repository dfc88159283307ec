"""What crosses the wire, as frozen dataclasses; protobuf messages stop at this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class SourceStatus(IntEnum):
    """State of a worker in the registry; the numbers are those of the protocol."""

    UNKNOWN = 0
    INITIALIZING = 1
    READY = 2
    STALE = 3


@dataclass(frozen=True)
class TensorDescriptor:
    """One tensor as remote memory: `addr` and `size` in bytes, in the address space of its worker."""

    name: str
    addr: int
    size: int
    device_id: int
    dtype: str


@dataclass(frozen=True)
class ArtifactSummary:
    """A sealed cache artifact, summed up; `total_size` in bytes."""

    artifact_id: str
    total_size: int
    file_count: int
    chunk_count: int
    node_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """What the registry knows of one worker: where it is reached and what it holds.

    `updated_at` is the time of the last heartbeat in milliseconds since the epoch, set by the registry.
    An empty `accelerator` means unknown.
    """

    worker_id: str
    worker_rank: int = 0
    status: SourceStatus = SourceStatus.UNKNOWN
    updated_at: int = 0
    worker_grpc_endpoint: str = ""
    metadata_endpoint: str = ""
    agent_name: str = ""
    accelerator: str = ""
    topology: Mapping[str, str] = field(default_factory=dict)
    nixl_metadata: bytes = b""
    transfer_engine_session_id: str = ""
    tensors: tuple[TensorDescriptor, ...] = ()
    artifact: ArtifactSummary | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRef:
    """One worker in a listing, without its tensors. Optional numbers are None where the worker set none."""

    source_id: str
    worker_id: str
    model_name: str = ""
    worker_rank: int = 0
    accelerator: str = ""
    updated_at: int = 0
    training_step: int | None = None
    layout_signature: str | None = None
    topology: Mapping[str, str] = field(default_factory=dict)
    source_load: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceQuery:
    """What a listing is filtered by; None does not filter. `min_updated_at`: milliseconds since the epoch."""

    source_id: str | None = None
    status: SourceStatus | None = None
    model_name: str | None = None
    worker_rank: int | None = None
    min_training_step: int | None = None
    min_updated_at: int | None = None
    limit: int | None = None


class WorkerKey(NamedTuple):
    """What names one record of the registry."""

    source_id: str
    worker_id: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a worker published: its row in listings, and the rest as the bytes that arrived.

    `worker` and `identity` are serialised messages, kept whole so that fields of newer protocols survive a
    registry that does not know them. `ref.updated_at` and `ref.source_load` are not set here.
    """

    ref: SourceRef
    status: SourceStatus
    identity: bytes
    worker: bytes

    @property
    def key(self) -> WorkerKey:
        """The record that this publication replaces."""
        return WorkerKey(self.ref.source_id, self.ref.worker_id)


@dataclass(frozen=True, kw_only=True)
class StatusUpdate:
    """What a worker says of itself; `source_load` is None where it has no reading."""

    key: WorkerKey
    worker_rank: int
    status: SourceStatus
    source_load: float | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a manifest.

    `shape` and `strides` count elements; `region` indexes the manifest's regions; `offset` and `nbytes` are
    bytes. The bytes of the tensor are dense: `strides` is a permutation of a contiguous layout. Buffers that a
    checkpoint leaves out are not `persistent`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    region: int
    offset: int
    nbytes: int
    persistent: bool = True


@dataclass(frozen=True)
class FileSpec:
    """A small file that belongs to a material: relative path, size in bytes, SHA-256 in hex digits."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class TransportOffer:
    """A transport that a source offers, and what that transport needs to open it, or why it is no offer."""

    name: str
    descriptor: bytes
    refused: str = ""


@dataclass(frozen=True)
class Member:
    """A worker that may be asked for a lease: its id, and HOST:PORT; "" where it serves nobody."""

    worker_id: str
    endpoint: str = ""


@dataclass(frozen=True)
class Asking:
    """What a target says of itself when it asks for a lease.

    Args:
        member: The target, with the endpoint at which it passes on what it receives.
        chunks: How many leading chunks it has, verified.
        returning: It lost the source that it read from.
        avoid: Worker ids of those that it got nothing from.
    """

    member: Member
    chunks: int = 0
    returning: bool = False
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ReaderStatus:
    """How far one reader of a source is: bytes verified of bytes in all, after `seconds`.

    `endpoint` is where it can be asked for its own readers; "" where it has none.
    """

    source_id: str
    reader_id: str
    reader_host: str
    verified_bytes: int
    total_bytes: int
    seconds: float
    endpoint: str = ""
