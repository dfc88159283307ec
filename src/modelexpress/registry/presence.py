"""Presence: a worker holds a call open as long as it lives, so one that is killed is missed at once, not by silence."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from modelexpress.errors import RequestInvalid, StoreError
from modelexpress.registry.service import milliseconds
from modelexpress.registry.store import Store, WorkerState
from modelexpress.registry.store.base import DEAD
from modelexpress.wire.presence import METHOD, SERVICE
from modelexpress.wire.records import WorkerKey
from modelexpress.wire.registry_requests import decode_get

logger = logging.getLogger(__name__)

MOST_PRESENT = 8_192
"""Calls that are held open at once: workers beyond that are watched by their heartbeats alone."""

_PATIENCE_SECONDS = 1.0
"""A connection can break while both ends live: then the worker calls again, or its heartbeat comes."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Presence:
    """Marks a worker as LOST when the call that it holds open breaks, as its kernel sees to when it dies.

    Its next heartbeat brings it back, if it lives after all. A worker that withdrew stays withdrawn.

    Args:
        store: Where records live.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._present: Counter[WorkerKey] = Counter()
        self._leaving = asyncio.Event()
        self._missing: set[asyncio.Task[None]] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {METHOD: grpc.unary_stream_rpc_method_handler(self.attend)}
        )

    async def attend(self, data: bytes, context: Context) -> AsyncIterator[bytes]:
        """Hold a worker's call until it breaks, or the registry stops."""
        key = await self._admit(data, context)
        self._present[key] += 1
        try:
            yield b""
            await self._leaving.wait()
        finally:
            self._present[key] -= 1
            if not self._leaving.is_set():
                task = asyncio.create_task(self._miss(key, milliseconds()))
                self._missing.add(task)
                task.add_done_callback(self._missing.discard)
            self._present += Counter()  # forgets whom nobody calls for

    async def close(self) -> None:
        """End every call; nothing is concluded from that."""
        self._leaving.set()
        for task in tuple(self._missing):
            task.cancel()
        await asyncio.gather(*self._missing, return_exceptions=True)

    async def _admit(self, data: bytes, context: Context) -> WorkerKey:
        try:
            key = decode_get(data)
            found = await self._store.get(key)
        except RequestInvalid as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such record: publish it first")
        if self._present.total() >= MOST_PRESENT:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many workers are present: heartbeats will do")
        return key

    async def _miss(self, key: WorkerKey, since: int) -> None:
        await asyncio.sleep(_PATIENCE_SECONDS)
        if key in self._present:
            return
        try:
            found = await self._store.get(key)
            if found is None or found[1].state in DEAD or found[1].updated_at > since:
                return
            await self._store.update(key, WorkerState.LOST, found[1].updated_at)
        except StoreError as error:
            logger.debug("worker %s is missed by its silence only: %s", key.worker_id, error)
        else:
            logger.info("worker %s of source %s is gone", key.worker_id, key.source_id)
