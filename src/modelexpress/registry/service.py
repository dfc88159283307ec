"""The registry's four calls: bytes in, a store asked, bytes out."""

import time
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from modelexpress.errors import RequestInvalid, StoreError, StoreFull
from modelexpress.registry.metrics import Metrics
from modelexpress.registry.quota import Quota
from modelexpress.registry.store import Store, Update, WorkerState
from modelexpress.wire import registry_answers as answers
from modelexpress.wire import registry_requests as requests
from modelexpress.wire.p2p_service import SERVICE_NAME

Context = grpc.aio.ServicerContext[bytes, bytes]
Call = Callable[[bytes], Awaitable[bytes]]

_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (RequestInvalid, grpc.StatusCode.INVALID_ARGUMENT),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreError, grpc.StatusCode.UNAVAILABLE),
)


def milliseconds() -> int:
    """Return the time in milliseconds since the epoch, as records carry it."""
    return time.time_ns() // 1_000_000


class P2pService:
    """The protocol's `P2pService` over a store.

    Args:
        store: Where records live.
        heartbeat_timeout: Seconds after which an unheard worker is told as STALE.
        quota: What the store may hold.
        metrics: Counts the calls.
    """

    def __init__(self, store: Store, heartbeat_timeout: float, quota: Quota, metrics: Metrics) -> None:
        self._store = store
        self._timeout_ms = round(heartbeat_timeout * 1000)
        self._quota = quota
        self._metrics = metrics

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server registers.

        Requests are parsed here and not by gRPC, which would answer malformed bytes with UNKNOWN.
        """
        calls: dict[str, Call] = {
            "PublishMetadata": self.publish,
            "ListSources": self.list_sources,
            "GetMetadata": self.get,
            "UpdateStatus": self.update,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {name: grpc.unary_unary_rpc_method_handler(self._edge(name, call)) for name, call in calls.items()},
        )

    async def publish(self, data: bytes) -> bytes:
        """Replace a worker's record; answer with its source id."""
        publication = requests.decode_publish(data)
        await self._quota.admit(len(publication.worker) + len(publication.identity))
        await self._store.publish(publication, milliseconds())
        return answers.encode_published(publication.key)

    async def list_sources(self, data: bytes) -> bytes:
        """Answer with the records that pass the request's filters."""
        query = requests.decode_list(data)
        return answers.encode_listing(await self._store.list_refs(query, self._stale_before()))

    async def get(self, data: bytes) -> bytes:
        """Answer with one record."""
        key = requests.decode_get(data)
        found = await self._store.get(key)
        if found is None:
            return answers.encode_not_found(key)
        publication, live = found
        return answers.encode_found(publication, live.status(self._stale_before()), live.updated_at)

    async def update(self, data: bytes) -> bytes:
        """Take a worker's word for its status; the rank is not checked, a worker id has only one."""
        update = requests.decode_update(data)
        outcome = await self._store.update(
            update.key, WorkerState.told(update.status), milliseconds(), update.source_load
        )
        return answers.encode_updated(outcome is Update.DONE, "" if outcome is Update.DONE else outcome.value)

    def _stale_before(self) -> int:
        return milliseconds() - self._timeout_ms

    def _edge(self, name: str, call: Call) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def answer(data: bytes, context: Context) -> bytes:
            with self._metrics.call(name) as outcome:
                try:
                    return await call(data)
                except tuple(kind for kind, _ in _CODES) as error:
                    code = next(code for kind, code in _CODES if isinstance(error, kind))
                    outcome.code = code.name
                    await context.abort(code, str(error))

        return answer
