"""A heartbeat refreshes a timestamp and nothing else: what was published is never written again."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from modelexpress.registry.store import Store, Update, WorkerState, open_store
from modelexpress.wire.records import WorkerKey
from tests.conformance.store import LLAMA, NOW, publication
from tests.support.redis_server import RedisServer

KEY = WorkerKey(LLAMA, "w0")
FORBID = "CREATE TRIGGER forbidden BEFORE UPDATE ON publication BEGIN SELECT RAISE(ABORT, 'written again'); END"


async def beat(store: Store) -> None:
    for number in range(10):
        assert await store.update(KEY, WorkerState.READY, NOW + number, number / 10) is Update.DONE


async def test_sqlite_writes_only_the_narrow_table(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    store = await open_store(f"sqlite:{path}")
    await store.publish(publication(), NOW)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(FORBID)
    await beat(store)
    await store.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


async def test_redis_writes_only_the_liveness(redis_server: RedisServer) -> None:
    store = await open_store(redis_server.url)
    await store.publish(publication(), NOW)
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.delete(f"modelexpress:record:{LLAMA}:w0") == 1
        await beat(store)
        assert not client.exists(f"modelexpress:record:{LLAMA}:w0")
    await store.close()
