"""The client side of a worker server: acquire a lease, read the manifest, report, release."""

import logging
import threading
from hashlib import sha256
from types import TracebackType
from typing import Self

import grpc

from modelexpress.client.channel import connection
from modelexpress.errors import ManifestInvalid, PeerError
from modelexpress.peer.status import calling
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.wire import peer_pb2, peer_pb2_grpc
from modelexpress.wire.peer import (
    LeaseGrant,
    MessageInvalid,
    grant_from_message,
    read_pages,
    readers_from_message,
)
from modelexpress.wire.records import FileSpec, ReaderStatus

logger = logging.getLogger(__name__)

_COURTESY = 1.0
"""Seconds for calls that only help the source: a frozen one must not hold up its reader."""
_MOST_FILE_BYTES = 256 << 20
_SHORTEST_REPORT = 0.05
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The transports go directly, so a proxy that lets these calls through would only help until then.
    ("grpc.enable_http_proxy", 0),
)


class PeerClient:
    """Calls to one worker. Threads may share it.

    Args:
        address: HOST:PORT of the worker's gRPC server.
        timeout: Seconds that each call may take; reading a manifest may take ten times as long.
    """

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self.address = address
        self._timeout = timeout
        self._metadata = connection(address, timeout, None, None).metadata
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = peer_pb2_grpc.PeerServiceStub(self._channel)

    def acquire(self, source_id: str, worker_id: str, reader_id: str, reader_host: str) -> LeaseGrant:
        """Ask for a lease.

        Raises:
            SourceGone: Another worker answers there, or it holds this material no longer.
            SourceBusy: It has as many readers as it accepts.
            PeerUnreachable: Nobody answers there.
            ManifestInvalid: It grants what no honest source would.
        """
        request = peer_pb2.AcquireLeaseRequest(
            source_id=source_id, worker_id=worker_id, reader_id=reader_id, reader_host=reader_host
        )
        with calling(self.address):
            answer = self._stub.AcquireLease(request, timeout=self._timeout, metadata=self._metadata())
        try:
            return grant_from_message(answer)
        except MessageInvalid as error:
            raise ManifestInvalid(f"worker {self.address} granted a lease that is no use: {error}") from error

    def manifest(self, grant: LeaseGrant) -> Manifest:
        """Read the whole manifest.

        Raises:
            ManifestInvalid: It contradicts itself.
            LeaseExpired: The lease ended in the meantime.
            PeerUnreachable: The worker is gone.
        """
        request = peer_pb2.ReadManifestRequest(lease_id=grant.lease_id)
        head = grant.manifest
        try:
            with calling(self.address):
                pages = self._stub.ReadManifest(request, timeout=10 * self._timeout, metadata=self._metadata())
                tensors, digests = read_pages(pages, head)
            return Manifest(
                Scope(head.scope),
                head.chunk_bytes,
                head.region_bytes,
                tensors,
                digests,
                head.files,
                head.digest_algorithm,
            )
        except (MessageInvalid, ValueError) as error:
            raise ManifestInvalid(f"worker {self.address} sent a manifest that is no use: {error}") from error

    def file(self, grant: LeaseGrant, file: FileSpec) -> bytes:
        """Read a small file of the material.

        Raises:
            ManifestInvalid: It is larger than allowed, or not what its checksum says.
        """
        if file.nbytes > _MOST_FILE_BYTES:
            raise ManifestInvalid(f"file '{file.path}' of {file.nbytes} bytes is larger than {_MOST_FILE_BYTES}")
        data = bytearray()
        request = peer_pb2.ReadFileRequest(lease_id=grant.lease_id, path=file.path)
        with calling(self.address):
            for block in self._stub.ReadFile(request, timeout=10 * self._timeout, metadata=self._metadata()):
                data += block.data
                if len(data) > file.nbytes:
                    break
        if len(data) != file.nbytes or sha256(data).hexdigest() != file.sha256:
            raise ManifestInvalid(f"file '{file.path}' from worker {self.address} does not match its SHA-256")
        return bytes(data)

    def report(self, lease_id: str, verified_bytes: int) -> float:
        """Say how far this reader is; return the seconds that the lease now lasts."""
        request = peer_pb2.ReportProgressRequest(lease_id=lease_id, verified_bytes=verified_bytes)
        with calling(self.address):
            return float(self._stub.ReportProgress(request, timeout=_COURTESY, metadata=self._metadata()).ttl_seconds)

    def release(self, lease_id: str) -> None:
        """End a lease."""
        with calling(self.address):
            self._stub.ReleaseLease(
                peer_pb2.ReleaseLeaseRequest(lease_id=lease_id), timeout=_COURTESY, metadata=self._metadata()
            )

    def readers(self, source_id: str = "") -> list[ReaderStatus]:
        """Return who reads from this worker, and how far they are."""
        request = peer_pb2.ListReadersRequest(source_id=source_id)
        with calling(self.address):
            return readers_from_message(
                self._stub.ListReaders(request, timeout=self._timeout, metadata=self._metadata())
            )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HeldLease:
    """A lease in use: a thread reports progress, which keeps it alive, until the block ends and it is released.

    A source that cannot be told is not an error here: if it is gone, the transfer says so.
    """

    def __init__(self, client: PeerClient, grant: LeaseGrant) -> None:
        self.grant = grant
        self.verified_bytes = 0
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, name="mx-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._client.release(self.grant.lease_id)
        except PeerError as gone:
            logger.debug("lease not released, it will expire: %s", gone)

    def _report(self) -> None:
        interval = min(1.0, max(self.grant.ttl_seconds / 4, _SHORTEST_REPORT))
        while not self._stop.wait(interval):
            try:
                self._client.report(self.grant.lease_id, self.verified_bytes)
            except PeerError as error:
                logger.debug("progress not reported: %s", error)
