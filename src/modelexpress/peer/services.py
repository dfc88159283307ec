"""What a worker answers: the fleet's WorkerService and our own PeerService, over the same materials and leases."""

from collections.abc import Iterator

import grpc

from modelexpress.errors import SourceGone
from modelexpress.peer.shelf import Shelf
from modelexpress.peer.status import answering
from modelexpress.wire import p2p_pb2, p2p_pb2_grpc, peer_pb2, peer_pb2_grpc
from modelexpress.wire.peer import file_blocks, grant_to_message, manifest_pages, readers_to_message
from modelexpress.wire.worker import manifest_to_message


class PeerService(peer_pb2_grpc.PeerServiceServicer):
    """Leases, manifests, files and progress. The methods are those of proto/modelexpress/wire/peer.proto."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def AcquireLease(  # noqa: N802
        self, request: peer_pb2.AcquireLeaseRequest, context: grpc.ServicerContext
    ) -> peer_pb2.AcquireLeaseResponse:
        with answering(context):
            self._shelf.check_worker(request.worker_id)
            return grant_to_message(self._shelf.lease(request.source_id, request.reader_id, request.reader_host))

    def ReadManifest(  # noqa: N802
        self, request: peer_pb2.ReadManifestRequest, context: grpc.ServicerContext
    ) -> Iterator[peer_pb2.ManifestPage]:
        with answering(context), self._shelf.leases.streaming(request.lease_id, context.cancel) as lease:
            manifest = self._shelf.material(lease.source_id).manifest
            yield from manifest_pages(manifest.tensors, manifest.digests, manifest.chunk_starts)

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
            self._shelf.leases.get(request.lease_id).verified_bytes = request.verified_bytes
            return peer_pb2.ReportProgressResponse(ttl_seconds=self._shelf.leases.ttl)

    def ReleaseLease(  # noqa: N802
        self, request: peer_pb2.ReleaseLeaseRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ReleaseLeaseResponse:
        with answering(context):
            self._shelf.leases.release(request.lease_id)
            return peer_pb2.ReleaseLeaseResponse()

    def ListReaders(  # noqa: N802
        self, request: peer_pb2.ListReadersRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ListReadersResponse:
        return readers_to_message(self._shelf.leases.readers(request.source_id))


class WorkerService(p2p_pb2_grpc.WorkerServiceServicer):
    """The tensor half of the fleet's worker protocol."""

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
            reader = context.peer()
            lease_id = self._shelf.lease(request.mx_source_id, reader, reader).lease_id
            return p2p_pb2.PrepareTensorReadResponse(lease_id=lease_id, manifest=self._manifest(request.mx_source_id))

    def ReleaseTensorRead(  # noqa: N802
        self, request: p2p_pb2.ReleaseTensorReadRequest, context: grpc.ServicerContext
    ) -> p2p_pb2.ReleaseTensorReadResponse:
        with answering(context):
            self._check(request)
            self._shelf.leases.release(request.lease_id)
            return p2p_pb2.ReleaseTensorReadResponse()

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
