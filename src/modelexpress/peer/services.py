"""What a worker answers: the fleet's WorkerService and our own PeerService, over the same materials and leases."""

from collections.abc import Iterator
from typing import NoReturn

import grpc

from modelexpress.errors import PeerLost, SourceGone
from modelexpress.peer.joining import Redirected
from modelexpress.peer.shelf import Shelf
from modelexpress.peer.status import answering
from modelexpress.wire import p2p_pb2, p2p_pb2_grpc, peer_pb2, peer_pb2_grpc
from modelexpress.wire.artifact import SealedArtifact, chunks_to_message, header_to_message
from modelexpress.wire.asking import asking_from_message
from modelexpress.wire.peer import file_blocks, grant_to_message, members_to_messages, readers_to_message
from modelexpress.wire.worker import manifest_to_message

SMALL_MANIFEST_BYTES = 2 << 20
"""A manifest up to this size comes with the lease, which saves its reader a question."""

PREFIX_SECONDS = 1.0
"""How often a worker that is still receiving says how far it is when nothing has changed."""

_NO_STAGING = "this worker stages no chunks: read the artifact with a lease of modelexpress.peer.v1.PeerService"


class PeerService(peer_pb2_grpc.PeerServiceServicer):
    """Leases, manifests, files and progress. The methods are those of proto/modelexpress/wire/peer.proto."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def AcquireLease(  # noqa: N802
        self, request: peer_pb2.AcquireLeaseRequest, context: grpc.ServicerContext
    ) -> peer_pb2.AcquireLeaseResponse:
        with answering(context):
            self._shelf.check_worker(request.worker_id)
            answer = self._shelf.lease(request.source_id, asking_from_message(request), request.reader_host)
            if isinstance(answer, Redirected):
                return peer_pb2.AcquireLeaseResponse(redirect=members_to_messages(answer.members))
            message = grant_to_message(answer)
            pages = self._shelf.material(request.source_id).manifest.pages
            if sum(page.ByteSize() for page in pages) <= SMALL_MANIFEST_BYTES:
                message.pages.extend(pages)
            return message

    def ReadManifest(  # noqa: N802
        self, request: peer_pb2.ReadManifestRequest, context: grpc.ServicerContext
    ) -> Iterator[peer_pb2.ManifestPage]:
        with answering(context), self._shelf.leases.streaming(request.lease_id, context.cancel) as lease:
            yield from self._shelf.material(lease.source_id).manifest.pages

    def ReadFile(  # noqa: N802
        self, request: peer_pb2.ReadFileRequest, context: grpc.ServicerContext
    ) -> Iterator[peer_pb2.FileBlock]:
        with answering(context), self._shelf.leases.streaming(request.lease_id, context.cancel) as lease:
            files = self._shelf.material(lease.source_id).files
            if request.path not in files:
                raise SourceGone(f"this material has no file '{request.path[:200]}'")
            yield from file_blocks(files[request.path])

    def ReportProgress(  # noqa: N802
        self, request: peer_pb2.ReportProgressRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ReportProgressResponse:
        with answering(context):
            lease = self._shelf.leases.get(request.lease_id)
            lease.verified_bytes = request.verified_bytes
            lease.verified_chunks = request.verified_chunks
            return peer_pb2.ReportProgressResponse(
                ttl_seconds=self._shelf.leases.ttl, bytes_per_second=self._shelf.share()
            )

    def ReleaseLease(  # noqa: N802
        self, request: peer_pb2.ReleaseLeaseRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ReleaseLeaseResponse:
        with answering(context):
            self._shelf.leases.release(request.lease_id)
            return peer_pb2.ReleaseLeaseResponse()

    def FollowPrefix(  # noqa: N802
        self, request: peer_pb2.FollowPrefixRequest, context: grpc.ServicerContext
    ) -> Iterator[peer_pb2.PrefixUpdate]:
        with answering(context), self._shelf.leases.streaming(request.lease_id, context.cancel) as lease:
            prefix, value = self._shelf.prefix(lease.source_id), -1
            try:
                while context.is_active() and value < prefix.chunks:
                    # Also when nothing is new: it says that this worker lives.
                    value = prefix.wait_beyond(value, PREFIX_SECONDS)
                    yield peer_pb2.PrefixUpdate(verified_chunks=value)
            except PeerLost as error:
                raise SourceGone(str(error)) from error

    def ListReaders(  # noqa: N802
        self, request: peer_pb2.ListReadersRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ListReadersResponse:
        return readers_to_message(self._shelf.leases.readers(request.source_id))


class WorkerService(p2p_pb2_grpc.WorkerServiceServicer):
    """The fleet's worker protocol: tensors, and the sealed manifests of artifacts.

    The bytes of an artifact go over the leases of `PeerService` alone: this protocol knows RDMA only for them.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def GetTensorManifest(  # noqa: N802
        self, request: p2p_pb2.GetTensorManifestRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.GetTensorManifestResponse:
        with answering(context):
            self._check(request)
            return self._manifest(request.mx_source_id)

    def PrepareTensorRead(  # noqa: N802
        self, request: p2p_pb2.PrepareTensorReadRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.PrepareTensorReadResponse:
        with answering(context):
            self._check(request)
            lease_id = self._shelf.lease_anyway(request.mx_source_id, context.peer())
            return p2p_pb2.PrepareTensorReadResponse(lease_id=lease_id, manifest=self._manifest(request.mx_source_id))

    def ReleaseTensorRead(  # noqa: N802
        self, request: p2p_pb2.ReleaseTensorReadRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.ReleaseTensorReadResponse:
        with answering(context):
            self._check(request)
            self._shelf.leases.release(request.lease_id)
            return p2p_pb2.ReleaseTensorReadResponse()

    def GetArtifactManifestHeader(  # noqa: N802
        self, request: p2p_pb2.GetArtifactManifestHeaderRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.GetArtifactManifestHeaderResponse:
        with answering(context):
            sealed = self._sealed(request.mx_source_id, request.artifact_id)
            rank = self._shelf.material(request.mx_source_id).rank
            return header_to_message(request.mx_source_id, rank, sealed)

    def GetArtifactManifestChunks(  # noqa: N802
        self, request: p2p_pb2.GetArtifactManifestChunksRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.GetArtifactManifestChunksResponse:
        with answering(context):
            sealed = self._sealed(request.mx_source_id, request.artifact_id)
            return chunks_to_message(request.mx_source_id, sealed, request.start_chunk_index, request.max_chunks)

    def PrepareArtifactChunk(  # noqa: N802
        self, request: p2p_pb2.PrepareArtifactChunkRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_STAGING)

    def ReleaseArtifactChunk(  # noqa: N802
        self, request: p2p_pb2.ReleaseArtifactChunkRequest, context: grpc.ServicerContext
    ) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_STAGING)

    def _sealed(self, source_id: str, artifact_id: str) -> SealedArtifact:
        sealed = self._shelf.material(source_id).artifact
        if sealed is None or artifact_id not in ("", sealed.artifact_id):
            raise SourceGone(f"worker {self._shelf.worker_id} does not hold artifact {artifact_id[:64]!r} (any more)")
        return sealed

    def _check(
        self,
        request: p2p_pb2.GetTensorManifestRequest | p2p_pb2.PrepareTensorReadRequest | p2p_pb2.ReleaseTensorReadRequest,
    ) -> None:
        if request.HasField("worker_id"):
            self._shelf.check_worker(request.worker_id)
        self._shelf.material(request.mx_source_id)

    def _manifest(self, source_id: str) -> p2p_pb2.GetTensorManifestResponse:
        material = self._shelf.material(source_id)
        return manifest_to_message(
            source_id, self._shelf.worker_id, material.rank, material.accelerator, material.descriptors()
        )
