"""The Redis store passes the conformance suite, against a real redis-server."""

from collections.abc import AsyncIterator, Iterator

import pytest

from modelexpress.registry.store import Store, open_store
from tests.conformance.store import StoreConformance
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedisStore(StoreConformance):
    @pytest.fixture
    async def store(self, redis_server: RedisServer) -> AsyncIterator[Store]:
        redis_server.flush()
        store = await open_store(redis_server.url)
        yield store
        await store.close()
