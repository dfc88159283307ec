"""A hostile worker for tests: a real gRPC server that answers as an honest one would, but for what a test makes it say.

It serves a real material over real transports, so that whatever a target finds wrong is the lie and nothing else.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc

from modelexpress.client import Client
from modelexpress.peer import Material
from modelexpress.peer.services import PeerService
from modelexpress.peer.shelf import Shelf
from modelexpress.transport import available
from modelexpress.wire import peer_pb2, peer_pb2_grpc
from modelexpress.wire.records import SourceStatus, WorkerRecord
from tests.support.materials import SETTINGS

Lie = Callable[[peer_pb2.AcquireLeaseResponse, peer_pb2.ManifestPage], object]
"""Changes the grant and the only page of the manifest; it is called once, when a lease is acquired."""

HOSTILE = "a-hostile-worker"


class _Service(PeerService):
    """Answers with what `lie` makes of the honest answers; everything else is honest."""

    def __init__(self, shelf: Shelf, lie: Lie) -> None:
        super().__init__(shelf)
        self._lie = lie
        self._page = peer_pb2.ManifestPage()
        self.reports = 0

    def AcquireLease(  # noqa: N802
        self, request: peer_pb2.AcquireLeaseRequest, context: grpc.ServicerContext
    ) -> peer_pb2.AcquireLeaseResponse:
        grant = super().AcquireLease(request, context)
        manifest = peer_pb2.ReadManifestRequest(lease_id=grant.lease_id)
        (honest,) = super().ReadManifest(manifest, context)
        self._page.CopyFrom(honest)
        self._lie(grant, self._page)
        if grant.pages:
            # A small manifest comes with the lease: there the lie must be told, too.
            del grant.pages[:]
            grant.pages.append(self._page)
        return grant

    def ReadManifest(  # noqa: N802
        self, request: peer_pb2.ReadManifestRequest, context: grpc.ServicerContext
    ) -> Iterator[peer_pb2.ManifestPage]:
        yield self._page

    def ReportProgress(  # noqa: N802
        self, request: peer_pb2.ReportProgressRequest, context: grpc.ServicerContext
    ) -> peer_pb2.ReportProgressResponse:
        self.reports += 1
        return peer_pb2.ReportProgressResponse(ttl_seconds=0)


class HostileWorker:
    """Serves a material with a lie, and is listed by the registry as a source with no readers.

    Args:
        registry: HOST:PORT.
        material: What it serves.
        lie: What it says that is not so.
        endpoint: What the registry is told; None: the truth.
    """

    def __init__(self, registry: str, material: Material, lie: Lie, *, endpoint: str | None = None) -> None:
        self._transports = available(SETTINGS).transports
        self._shelf = Shelf(HOSTILE, self._transports)
        self._shelf.add(material)
        self._service = _Service(self._shelf, lie)
        self._server = grpc.server(ThreadPoolExecutor(4))
        peer_pb2_grpc.add_PeerServiceServicer_to_server(self._service, self._server)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        record = WorkerRecord(
            worker_id=HOSTILE,
            status=SourceStatus.READY,
            worker_grpc_endpoint=self.endpoint if endpoint is None else endpoint,
        )
        with Client(registry) as client:
            client.publish(material.identity, record)

    @property
    def reports(self) -> int:
        """How often readers have said how far they are."""
        return self._service.reports

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._shelf.close()
        for transport in self._transports:
            transport.close()


class Babbler(grpc.GenericRpcHandler):
    """A server on a free port that answers every call with the same bytes, several times over where it can."""

    def __init__(self) -> None:
        self.answer = b""
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        if str(details.method).endswith(("ReadManifest", "ReadFile")):
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([self.answer] * 3))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
