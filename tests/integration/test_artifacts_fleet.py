"""What the fleet's own protocol is told of a cache: its sealed manifest, page by page."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.sealed import SealedChunk, SealedManifest
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.peer import Publication, Worker
from modelexpress.settings import Settings
from modelexpress.wire import p2p_pb2, p2p_pb2_grpc
from tests.support.caches import KINDS, cache_files, write_cache
from tests.support.materials import make_material, new_identity

PLAIN = KINDS["plain"]
CHUNK = 1000


@pytest.fixture
def worker(registry: str) -> Iterator[Worker]:
    with Worker(settings=Settings(registry=registry, worker_grpc_port=0)) as worker:
        yield worker


@pytest.fixture
def sealed(tmp_path: Path) -> SealedManifest:
    with take_snapshot(PLAIN, write_cache(tmp_path, cache_files(5, 2500)), CHUNK) as snapshot:
        return snapshot.manifest


@pytest.fixture
def offered(worker: Worker, tmp_path: Path, sealed: SealedManifest) -> Publication:
    return offer(take_snapshot(PLAIN, tmp_path, CHUNK), PLAIN.identity(new_identity()), worker=worker, node_rank=3)


@pytest.fixture
def stub(worker: Worker) -> Iterator[p2p_pb2_grpc.WorkerServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
        yield p2p_pb2_grpc.WorkerServiceStub(channel)


def test_the_header_lists_the_files(
    stub: p2p_pb2_grpc.WorkerServiceStub, offered: Publication, sealed: SealedManifest
) -> None:
    request = p2p_pb2.GetArtifactManifestHeaderRequest(mx_source_id=offered.source_id, artifact_id=sealed.artifact_id)
    header = stub.GetArtifactManifestHeader(request)
    assert (header.mx_source_id, header.artifact_id) == (offered.source_id, sealed.artifact_id)
    assert (header.manifest_version, int(header.mx_source_type)) == (1, int(PLAIN.source_type))
    assert (header.total_size, header.file_count, header.chunk_count, header.chunk_size) == (12_500, 6, 15, CHUNK)
    assert header.worker_rank == 3
    files = [(file.file_index, file.path, file.size, file.checksum) for file in header.files]
    assert files == [(file.index, file.path, file.size, file.checksum) for file in sealed.files]


@pytest.mark.parametrize("most", [0, 1, 4, 15, 1 << 31])
def test_the_chunks_come_page_by_page(
    stub: p2p_pb2_grpc.WorkerServiceStub, offered: Publication, sealed: SealedManifest, most: int
) -> None:
    chunks: list[SealedChunk] = []
    token = "0"
    while token:
        request = p2p_pb2.GetArtifactManifestChunksRequest(
            mx_source_id=offered.source_id,
            artifact_id=sealed.artifact_id,
            start_chunk_index=int(token),
            max_chunks=most,
        )
        page = stub.GetArtifactManifestChunks(request)
        assert page.start_chunk_index == len(chunks)
        assert len(page.chunks) <= (most or 15)
        chunks += [SealedChunk(c.chunk_index, c.file_index, c.file_offset, c.length, c.checksum) for c in page.chunks]
        token = page.next_page_token
    assert tuple(chunks) == sealed.chunks


def test_beyond_the_last_chunk_there_is_nothing(
    stub: p2p_pb2_grpc.WorkerServiceStub, offered: Publication, sealed: SealedManifest
) -> None:
    request = p2p_pb2.GetArtifactManifestChunksRequest(
        mx_source_id=offered.source_id,
        artifact_id=sealed.artifact_id,
        start_chunk_index=2**32 - 1,
        max_chunks=2**32 - 1,
    )
    page = stub.GetArtifactManifestChunks(request)
    assert not page.chunks
    assert not page.next_page_token


def test_another_artifact_or_source_is_refused(
    stub: p2p_pb2_grpc.WorkerServiceStub, worker: Worker, offered: Publication, sealed: SealedManifest
) -> None:
    weights = worker.publish(make_material())
    for source_id, artifact_id in (
        (offered.source_id, "0" * 64),
        ("0" * 16, sealed.artifact_id),
        (weights.source_id, sealed.artifact_id),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetArtifactManifestHeader(
                p2p_pb2.GetArtifactManifestHeaderRequest(mx_source_id=source_id, artifact_id=artifact_id)
            )
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetArtifactManifestChunks(
                p2p_pb2.GetArtifactManifestChunksRequest(mx_source_id=source_id, artifact_id=artifact_id)
            )
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_staging_chunks_is_said_to_be_missing(
    stub: p2p_pb2_grpc.WorkerServiceStub, offered: Publication, sealed: SealedManifest
) -> None:
    prepare = p2p_pb2.PrepareArtifactChunkRequest(mx_source_id=offered.source_id, artifact_id=sealed.artifact_id)
    release = p2p_pb2.ReleaseArtifactChunkRequest(mx_source_id=offered.source_id, artifact_id=sealed.artifact_id)
    for call in (lambda: stub.PrepareArtifactChunk(prepare), lambda: stub.ReleaseArtifactChunk(release)):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "with a lease of modelexpress.peer.v1.PeerService" in (caught.value.details() or "")
