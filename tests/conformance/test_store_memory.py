"""The memory store passes the conformance suite."""

import pytest

from modelexpress.registry.store import Store, open_store
from tests.conformance.store import StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    async def store(self) -> Store:
        return await open_store("memory")
