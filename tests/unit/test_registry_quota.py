"""A registry that is full says so, and takes more once there is room."""

import pytest

from modelexpress.errors import StoreFull
from modelexpress.registry.quota import Capacity, Quota
from modelexpress.registry.store import open_store
from tests.conformance.store import NOW, publication


async def test_records_are_counted_before_the_store_is_asked_again() -> None:
    store = await open_store("memory")
    quota = Quota(store, Capacity(records=3, nbytes=1000))
    for _ in range(3):
        await quota.admit(10)
    with pytest.raises(StoreFull, match="3 records"):
        await quota.admit(10)


async def test_bytes_are_counted() -> None:
    quota = Quota(await open_store("memory"), Capacity(records=100, nbytes=1000))
    await quota.admit(600)
    with pytest.raises(StoreFull, match="1000"):
        await quota.admit(600)
    await quota.admit(400)


async def test_what_the_store_already_holds_counts() -> None:
    store = await open_store("memory")
    for number in range(3):
        await store.publish(publication(f"w{number}"), NOW)
    with pytest.raises(StoreFull):
        await Quota(store, Capacity(records=3)).admit(1)
    await Quota(store, Capacity(records=4)).admit(1)
