"""Records in Redis: the store that several registries share."""

import json
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from modelexpress.errors import StoreError
from modelexpress.registry.store import redis_scripts as scripts
from modelexpress.registry.store.base import Liveness, Store, Update, Usage, WorkerState
from modelexpress.registry.store.matching import matches, ordered
from modelexpress.registry.store.redis_scripts import PREFIX
from modelexpress.wire.records import Publication, SourceQuery, SourceRef, SourceStatus, WorkerKey

Result = TypeVar("Result")

_LIVE = ("row", "state", "updated_at", "source_load")
_ROW = ("model_name", "worker_rank", "accelerator", "training_step", "layout_signature")
_CONNECTIONS = 32
_BATCH = 500  # records per script or pipeline: Redis serves nobody else meanwhile


class RedisStore(Store):
    """One Redis (no cluster: scripts touch keys of several slots); open it with `RedisStore.open`.

    What is lost when Redis itself restarts is up to its persistence: `appendonly yes` loses a second at most.
    """

    def __init__(self, url: str, redis: Any) -> None:
        self._url = url
        self._redis = redis
        self._publish = redis.register_script(scripts.PUBLISH)
        self._update = redis.register_script(scripts.UPDATE)
        self._mark_lost = redis.register_script(scripts.MARK_LOST)
        self._delete_dead = redis.register_script(scripts.DELETE_DEAD)

    @classmethod
    async def open(cls, url: str) -> "RedisStore":
        """Connect to the Redis at a URL (redis://, rediss:// or unix://).

        Raises:
            StoreError: The URL is none, or no Redis answers there.
        """
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=5,
                socket_timeout=5,
                socket_connect_timeout=2,
                # Every script may run twice: a publication replaces itself, an update repeats itself.
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3),
            )
        except ValueError as error:
            raise StoreError(f"{url!r} is no URL of a Redis: {error}") from error
        store = cls(url, Redis.from_pool(pool))
        try:
            await store._ask(store._redis.ping())
        except StoreError:
            await store.close()
            raise
        return store

    async def publish(self, publication: Publication, now: int) -> None:
        ref = publication.ref
        row = {name: getattr(ref, name) for name in _ROW} | {"topology": dict(ref.topology)}
        values = (
            *publication.key,
            int(WorkerState.told(publication.status)),
            now,
            json.dumps(row),
            publication.identity,
            publication.worker,
            len(publication.identity) + len(publication.worker),
        )
        await self._ask(self._publish(args=values))

    async def update(self, key: WorkerKey, state: WorkerState, now: int, source_load: float | None = None) -> Update:
        load = "" if source_load is None else repr(source_load)
        answer: bytes = await self._ask(self._update(args=(*key, int(state), now, load)))
        return Update[answer.decode()]

    async def get(self, key: WorkerKey) -> tuple[Publication, Liveness] | None:
        name = _name(key)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hmget(f"{PREFIX}live:{name}", _LIVE)
        pipeline.hmget(f"{PREFIX}record:{name}", ("identity", "worker"))
        live_fields, (identity, worker) = await self._ask(pipeline.execute())
        found = _found(key, live_fields)
        if found is None:
            return None
        ref, live = found
        return Publication(ref=ref, status=SourceStatus.UNKNOWN, identity=identity, worker=worker), live

    async def list_refs(self, query: SourceQuery, stale_before: int) -> list[SourceRef]:
        keys = await self._keys(query.source_id)
        refs = []
        for start in range(0, len(keys), _BATCH):
            for ref, live in await self._live(keys[start : start + _BATCH]):
                if matches(query, ref, live, stale_before):
                    refs.append(ref)
        return ordered(refs, query.limit)

    async def mark_lost(self, stale_before: int) -> int:
        return await self._in_batches(self._mark_lost, stale_before)

    async def delete_dead(self, stale_before: int) -> int:
        return await self._in_batches(self._delete_dead, stale_before)

    async def usage(self) -> Usage:
        totals: dict[bytes, bytes] = await self._ask(self._redis.hgetall(f"{PREFIX}totals"))
        nbytes = int(totals.pop(b"nbytes", 0))
        return Usage({WorkerState(int(state)): int(count) for state, count in totals.items()}, nbytes)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _keys(self, source_id: str | None) -> list[WorkerKey]:
        if source_id is not None:
            workers = await self._ask(self._redis.smembers(f"{PREFIX}source:{source_id}"))
            return [WorkerKey(source_id, worker.decode()) for worker in workers]
        pipeline = self._redis.pipeline(transaction=True)
        for name in ("alive", "dead"):
            pipeline.zrange(f"{PREFIX}{name}", 0, -1)
        alive, dead = await self._ask(pipeline.execute())
        return [WorkerKey(*name.decode().split(":", 1)) for name in (*alive, *dead)]

    async def _live(self, keys: Sequence[WorkerKey]) -> list[tuple[SourceRef, Liveness]]:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(f"{PREFIX}live:{_name(key)}", _LIVE)
        rows = await self._ask(pipeline.execute())
        # A record may be deleted between the two questions.
        return [found for key, row in zip(keys, rows, strict=True) if (found := _found(key, row)) is not None]

    async def _in_batches(self, script: Any, stale_before: int) -> int:
        done = 0
        while True:
            some: int = await self._ask(script(args=(stale_before, _BATCH)))
            done += some
            if some < _BATCH:
                return done

    async def _ask(self, question: Awaitable[Any]) -> Any:
        try:
            return await question
        except RedisError as error:
            raise StoreError(f"the Redis at {_without_password(self._url)} failed: {error}") from error


def _name(key: WorkerKey) -> str:
    return f"{key.source_id}:{key.worker_id}"


def _found(key: WorkerKey, fields: Sequence[bytes | None]) -> tuple[SourceRef, Liveness] | None:
    row, state, updated_at, load = fields
    if row is None or state is None or updated_at is None:
        return None
    live = Liveness(WorkerState(int(state)), int(updated_at), None if load is None else float(load))
    ref = SourceRef(source_id=key.source_id, worker_id=key.worker_id, **json.loads(row))
    return replace(ref, updated_at=live.updated_at, source_load=live.source_load), live


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
