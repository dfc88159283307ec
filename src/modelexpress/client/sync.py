"""A registry client whose calls block."""

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc

from modelexpress.client import calls
from modelexpress.client.attendance import Attendance
from modelexpress.client.calls import Answer, Call
from modelexpress.client.channel import OPTIONS, connection
from modelexpress.client.status import registry_error
from modelexpress.identity import SourceIdentity
from modelexpress.wire.presence import ATTEND
from modelexpress.wire.records import SourceQuery, SourceRef, SourceStatus, WorkerKey, WorkerRecord
from modelexpress.wire.registry_requests import encode_get
from modelexpress.wire.tls import ClientTls


class Client:
    """Speaks to one registry. Connects at the first call, and again whenever the registry comes back.

    One client may be used from many threads. After `os.fork()` the child opens a connection of its own at its
    first call; gRPC itself survives a fork only where no call was in flight, so prefer to spawn.

    Every call raises RegistryUnreachable when no registry answers in time, RegistryProtocolError when
    something else does, RegistryRefused when the registry refuses, ConfigurationError when a token or TLS
    file cannot be read, and ValueError after `close()`.

    Args:
        address: HOST:PORT; None takes the one of the environment (MODEL_EXPRESS_URL, MX_SERVER_ADDRESS).
        timeout: Deadline of each call in seconds, retries included.
        token: Bearer token; None takes the one in the file MX_AUTH_TOKEN_PATH, if set.
        tls: Files for TLS; None takes MX_TLS_CA, MX_TLS_CERT and MX_TLS_KEY, and plain text without them.

    Example:
        with Client("localhost:8001") as client:
            for ref in client.list_sources(status=SourceStatus.READY):
                print(ref.model_name, ref.worker_rank)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = 5.0,
        token: str | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        self._connection = connection(address, timeout, token, tls)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._process = os.getpid()
        self._closed = False

    @property
    def address(self) -> str:
        """HOST:PORT of the registry."""
        return self._connection.address

    def publish(self, identity: SourceIdentity, record: WorkerRecord) -> str:
        """Replace the record of `record.worker_id` and return its source id.

        Raises:
            IdentityError: The identity cannot be carried by the protocol.
        """
        return self._call(calls.publish(identity, record))

    def list_sources(
        self,
        identity: SourceIdentity | None = None,
        *,
        status: SourceStatus | None = None,
        model_name: str | None = None,
        worker_rank: int | None = None,
        min_training_step: int | None = None,
        min_updated_at: int | None = None,
        limit: int | None = None,
    ) -> list[SourceRef]:
        """Return the workers that pass every filter, the ones heard last first; None does not filter.

        Args:
            identity: Only workers of its source id.
            status: Only workers in this state; STALE includes those not heard for the registry's timeout.
            model_name: Only workers of this model, without regard to case.
            worker_rank: Only workers of this rank.
            min_training_step: Only workers that say a training step, and one not below this.
            min_updated_at: Only workers heard at or after this time, in milliseconds since the epoch.
            limit: At most so many rows; a registry tells 10,000 at most.
        """
        query = SourceQuery(
            status=status,
            model_name=model_name,
            worker_rank=worker_rank,
            min_training_step=min_training_step,
            min_updated_at=min_updated_at,
            limit=limit,
        )
        return self._call(calls.list_sources(query, identity))

    def get(self, source_id: str, worker_id: str) -> tuple[WorkerRecord, SourceIdentity] | None:
        """Return one worker's record and identity, or None where the registry has none."""
        return self._call(calls.get(source_id, worker_id))

    def update_status(
        self,
        source_id: str,
        worker_id: str,
        worker_rank: int,
        status: SourceStatus,
        source_load: float | None = None,
    ) -> bool:
        """Tell a worker's status; READY is also the heartbeat.

        Returns:
            False when the record is gone or was withdrawn: publish again to be a source.
        """
        return self._call(calls.update_status(source_id, worker_id, worker_rank, status, source_load))

    def attend(self, source_id: str, worker_id: str, broken: Callable[[], object]) -> Attendance:
        """Hold a call open for a record that is published, so that the registry misses its worker once it dies.

        Args:
            source_id: Of the record.
            worker_id: Likewise.
            broken: Called from another thread when the call breaks after a while, or is ended.
        """
        request = encode_get(WorkerKey(source_id, worker_id))
        hold: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._open().unary_stream(ATTEND)
        return Attendance(hold(request, metadata=self._connection.metadata()), broken)

    def close(self) -> None:
        """Close the connection; calls in flight fail. Closing twice is allowed, calling after it is not."""
        with self._lock:
            self._closed = True
            if self._channel is not None and self._process == os.getpid():
                self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: Call[Answer]) -> Answer:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._open().unary_unary(call.path)
        timeout = self._connection.timeout
        try:
            answer = send(call.request, timeout=timeout, metadata=self._connection.metadata())
        except grpc.RpcError as error:
            raise registry_error(error.code(), error.details() or "", self.address, timeout) from error
        return call.read(answer)

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise ValueError("this client is closed")
            if self._channel is None or self._process != os.getpid():
                tls, address = self._connection.tls, self._connection.address
                self._channel = (
                    grpc.insecure_channel(address, OPTIONS)
                    if tls is None
                    else grpc.secure_channel(address, tls.credentials(), OPTIONS)
                )
                self._process = os.getpid()
            return self._channel
