"""Answers of `model_express.p2p.WorkerService` about sealed cache artifacts.

What is sealed is described by protocols: the class belongs to a layer above this one.
"""

from collections.abc import Sequence
from typing import Protocol

from modelexpress.identity import SourceType
from modelexpress.wire import p2p_pb2 as pb
from modelexpress.wire.records import ArtifactSummary

MOST_CHUNKS = 10_000
"""Chunks in one answer: some 400 KB, far below what gRPC takes without being told."""


class SealedFile(Protocol):
    """One file of a sealed artifact: its size in bytes, and its CRC32C as 8 hex digits."""

    @property
    def index(self) -> int:
        """Its number among the files."""

    @property
    def path(self) -> str:
        """Where it lies below the cache's root."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def checksum(self) -> str:
        """CRC32C of its content."""


class SealedChunk(Protocol):
    """One range of one file of a sealed artifact."""

    @property
    def index(self) -> int:
        """Its number among all chunks."""

    @property
    def file_index(self) -> int:
        """Of the file."""

    @property
    def offset(self) -> int:
        """Where it begins in its file, in bytes."""

    @property
    def length(self) -> int:
        """Bytes."""

    @property
    def checksum(self) -> str:
        """CRC32C of its content."""


class SealedArtifact(Protocol):
    """A sealed manifest, as far as it crosses the wire."""

    @property
    def artifact_id(self) -> str:
        """SHA-256 of its canonical JSON."""

    @property
    def version(self) -> int:
        """Of the format."""

    @property
    def source_type(self) -> SourceType:
        """The kind of cache."""

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk, the last one of a file shorter."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""

    @property
    def files(self) -> Sequence[SealedFile]:
        """By path."""

    @property
    def chunks(self) -> Sequence[SealedChunk]:
        """By file, then offset."""


def summary_of(sealed: SealedArtifact, node_rank: int) -> ArtifactSummary:
    """Return what the registry is told of an artifact."""
    return ArtifactSummary(sealed.artifact_id, sealed.total_bytes, len(sealed.files), len(sealed.chunks), node_rank)


def header_to_message(source_id: str, rank: int, sealed: SealedArtifact) -> pb.GetArtifactManifestHeaderResponse:
    """Return the answer to GetArtifactManifestHeader."""
    return pb.GetArtifactManifestHeaderResponse(
        mx_source_id=source_id,
        artifact_id=sealed.artifact_id,
        manifest_version=sealed.version,
        mx_source_type=pb.MxSourceType.ValueType(sealed.source_type),
        total_size=sealed.total_bytes,
        file_count=len(sealed.files),
        chunk_count=len(sealed.chunks),
        chunk_size=sealed.chunk_size,
        worker_rank=rank,
        files=[
            pb.ArtifactManifestFile(file_index=file.index, path=file.path, size=file.size, checksum=file.checksum)
            for file in sealed.files
        ],
    )


def chunks_to_message(
    source_id: str, sealed: SealedArtifact, start: int, most: int
) -> pb.GetArtifactManifestChunksResponse:
    """Return the answer to GetArtifactManifestChunks.

    Its token is the index of the chunk that the next page begins with.

    Args:
        source_id: Of the material.
        sealed: The artifact.
        start: Index of the first chunk that is asked for.
        most: Chunks that are asked for; 0: as many as an answer takes.
    """
    end = min(start + min(most or MOST_CHUNKS, MOST_CHUNKS), len(sealed.chunks))
    return pb.GetArtifactManifestChunksResponse(
        mx_source_id=source_id,
        artifact_id=sealed.artifact_id,
        start_chunk_index=start,
        chunks=[
            pb.ArtifactManifestChunk(
                chunk_index=chunk.index,
                file_index=chunk.file_index,
                file_offset=chunk.offset,
                length=chunk.length,
                checksum=chunk.checksum,
            )
            for chunk in sealed.chunks[start:end]
        ],
        next_page_token=str(end) if end < len(sealed.chunks) else "",
    )
