"""A registry client for asyncio: the same calls as `Client`, awaited."""

from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from modelexpress.client import calls
from modelexpress.client.calls import Answer, Call
from modelexpress.client.channel import OPTIONS, connection
from modelexpress.client.status import registry_error
from modelexpress.identity import SourceIdentity
from modelexpress.wire.records import SourceQuery, SourceRef, SourceStatus, WorkerRecord
from modelexpress.wire.tls import ClientTls


class AsyncClient:
    """Speaks to one registry from one event loop; any number of calls may be in flight.

    Arguments, answers and errors are those of `Client`. It belongs to the loop of its first call and does not
    survive a fork.

    Example:
        async with AsyncClient("localhost:8001") as client:
            ready = await client.list_sources(status=SourceStatus.READY)
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
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """HOST:PORT of the registry."""
        return self._connection.address

    async def publish(self, identity: SourceIdentity, record: WorkerRecord) -> str:
        """See `Client.publish`."""
        return await self._call(calls.publish(identity, record))

    async def list_sources(
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
        """See `Client.list_sources`."""
        query = SourceQuery(
            status=status,
            model_name=model_name,
            worker_rank=worker_rank,
            min_training_step=min_training_step,
            min_updated_at=min_updated_at,
            limit=limit,
        )
        return await self._call(calls.list_sources(query, identity))

    async def get(self, source_id: str, worker_id: str) -> tuple[WorkerRecord, SourceIdentity] | None:
        """See `Client.get`."""
        return await self._call(calls.get(source_id, worker_id))

    async def update_status(
        self,
        source_id: str,
        worker_id: str,
        worker_rank: int,
        status: SourceStatus,
        source_load: float | None = None,
    ) -> bool:
        """See `Client.update_status`."""
        return await self._call(calls.update_status(source_id, worker_id, worker_rank, status, source_load))

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled. Closing twice is allowed."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, call: Call[Answer]) -> Answer:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._open().unary_unary(call.path)
        timeout = self._connection.timeout
        try:
            answer = await send(call.request, timeout=timeout, metadata=self._connection.metadata())
        except grpc.aio.AioRpcError as error:
            raise registry_error(error.code(), error.details() or "", self.address, timeout) from error
        return call.read(answer)

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise ValueError("this client is closed")
        if self._channel is None:
            tls, address = self._connection.tls, self._connection.address
            self._channel = (
                grpc.aio.insecure_channel(address, OPTIONS)
                if tls is None
                else grpc.aio.secure_channel(address, tls.credentials(), OPTIONS)
            )
        return self._channel
