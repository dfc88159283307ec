"""The client side of a worker server: ask for a lease, read the manifest, report, follow, release."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from types import TracebackType
from typing import Self

import grpc

from modelexpress.client.channel import connection
from modelexpress.errors import ManifestInvalid, PeerError, SourceBusy
from modelexpress.peer.joining import Redirected
from modelexpress.peer.status import calling
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.transfer.prefix import Prefix
from modelexpress.wire import peer_pb2, peer_pb2_grpc
from modelexpress.wire.asking import asking_to_message
from modelexpress.wire.manifest_pages import read_pages
from modelexpress.wire.peer import (
    LeaseGrant,
    MessageInvalid,
    grant_from_message,
    members_from_messages,
    readers_from_message,
)
from modelexpress.wire.records import Asking, FileSpec, Member, ReaderStatus

_COURTESY = 1.0
"""Seconds for calls that only help the source: a frozen one must not hold up its reader."""
_MOST_FILE_BYTES = 256 << 20
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
        own = connection(address, timeout, None, None)
        self._metadata = own.metadata
        if own.tls is not None and own.tls.certificate is not None:
            # Who has a certificate of its own is of a fleet whose workers all have one.
            self._channel = grpc.secure_channel(address, own.tls.credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = peer_pb2_grpc.PeerServiceStub(self._channel)

    def ask(self, source_id: str, worker_id: str, asking: Asking, host: str) -> LeaseGrant | Redirected:
        """Ask for a lease, or to be told whom else to ask.

        Raises:
            SourceGone: Another worker answers there, or it holds this material no longer.
            SourceBusy: It has as many readers as it accepts.
            PeerUnreachable: Nobody answers there.
            ManifestInvalid: It grants what no honest source would.
        """
        request = asking_to_message(asking, source_id, worker_id, host)
        with calling(self.address):
            answer = self._stub.AcquireLease(request, timeout=self._timeout, metadata=self._metadata())
        try:
            members = members_from_messages(answer.redirect)
            return Redirected(members) if members else grant_from_message(answer)
        except MessageInvalid as error:
            raise ManifestInvalid(f"worker {self.address} granted a lease that is no use: {error}") from error

    def acquire(self, source_id: str, worker_id: str, reader_id: str, reader_host: str) -> LeaseGrant:
        """Ask this worker, and no other one, for a lease.

        Raises:
            SourceBusy: It has readers that are to be asked instead.
            PeerError: As `ask` does.
            ManifestInvalid: As `ask` does.
        """
        answer = self.ask(source_id, worker_id, Asking(Member(reader_id)), reader_host)
        if isinstance(answer, Redirected):
            raise SourceBusy(f"worker {self.address} is full; its readers pass on what they have")
        return answer

    def manifest(self, grant: LeaseGrant) -> Manifest:
        """Read the whole manifest, unless it came with the lease.

        Raises:
            ManifestInvalid: It contradicts itself.
            LeaseExpired: The lease ended in the meantime.
            PeerUnreachable: The worker is gone.
        """
        request = peer_pb2.ReadManifestRequest(lease_id=grant.lease_id)
        head = grant.manifest
        try:
            with calling(self.address):
                pages: Iterable[peer_pb2.ManifestPage] = grant.pages
                if not grant.pages and head.tensor_count:
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

    def report(self, lease_id: str, verified_bytes: int, verified_chunks: int = 0) -> int:
        """Say how far this reader is; return how many bytes a second it may read, 0 for as many as it can."""
        request = peer_pb2.ReportProgressRequest(
            lease_id=lease_id, verified_bytes=verified_bytes, verified_chunks=verified_chunks
        )
        with calling(self.address):
            answer = self._stub.ReportProgress(request, timeout=_COURTESY, metadata=self._metadata())
        return int(answer.bytes_per_second)

    def follow(self, lease_id: str, prefix: Prefix, stop: Callable[[Callable[[], object]], object]) -> None:
        """Let `prefix` grow with what the source verifies, until it is complete; on failure, end it.

        Args:
            lease_id: Of the lease.
            prefix: Ended with the reason when the source says no more.
            stop: Given a function that ends this call.
        """
        request = peer_pb2.FollowPrefixRequest(lease_id=lease_id)
        updates = self._stub.FollowPrefix(request, metadata=self._metadata())
        stop(updates.cancel)
        try:
            with calling(self.address):
                for update in updates:
                    prefix.hear(update.verified_chunks)
        except PeerError as error:
            prefix.end(str(error))
        else:
            prefix.end(f"worker {self.address} stopped saying how far it is")

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
