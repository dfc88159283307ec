"""The memory store passes the conformance suite."""

import pytest
from tests.conformance.store import StoreConformance

from modelexpress.registry.store import Store, open_store


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    async def store(self) -> Store:
        return await open_store("memory")
