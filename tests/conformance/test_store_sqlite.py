"""The SQLite store passes the conformance suite."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelexpress.registry.store import Store, open_store
from tests.conformance.store import StoreConformance


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = await open_store(f"sqlite:{tmp_path / 'new folder' / 'registry.db'}")
        yield store
        await store.close()
