"""Workers that fall silent: not listed, then STALE, then deleted; and what brings them back."""

import time
from collections.abc import Iterator

import pytest

from modelexpress.client import Client
from modelexpress.registry.metrics import Metrics
from modelexpress.registry.reaper import Reaper
from modelexpress.registry.store import Store, Update, WorkerState, open_store
from modelexpress.wire.records import SourceQuery, SourceStatus, WorkerKey
from tests.conformance.store import LLAMA as SOURCE
from tests.conformance.store import NOW, publication
from tests.support.publications import LLAMA, record
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until

HOUR = 3_600_000
KEY = WorkerKey(SOURCE, "w0")


@pytest.fixture
def impatient() -> Iterator[Client]:
    """A client of a registry that forgets within seconds."""
    timeouts = ("--heartbeat-timeout", "0.5", "--reaper-interval", "0.1", "--gc-timeout", "2")
    with RegistryProcess("memory", "127.0.0.1:0", *timeouts) as registry, Client(registry.address) as client:
        yield client


def test_a_silent_worker_becomes_stale_and_is_deleted(impatient: Client) -> None:
    impatient.publish(LLAMA, record())
    assert len(impatient.list_sources(LLAMA, status=SourceStatus.READY)) == 1
    wait_until(lambda: not impatient.list_sources(LLAMA, status=SourceStatus.READY))
    assert len(impatient.list_sources(LLAMA, status=SourceStatus.STALE)) == 1
    found = impatient.get(LLAMA.source_id, "worker-0")
    assert found is not None
    assert found[0].status is SourceStatus.STALE
    wait_until(lambda: not impatient.list_sources(LLAMA))
    assert impatient.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY) is False


def test_a_beating_worker_stays(impatient: Client) -> None:
    impatient.publish(LLAMA, record())
    started = time.monotonic()
    # Longer than it takes to delete a silent worker.
    while time.monotonic() < started + 3:
        assert impatient.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY)
        assert len(impatient.list_sources(LLAMA, status=SourceStatus.READY)) == 1


def test_a_heartbeat_brings_a_lost_worker_back(impatient: Client) -> None:
    impatient.publish(LLAMA, record())
    wait_until(lambda: impatient.list_sources(LLAMA, status=SourceStatus.STALE))
    assert impatient.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY)
    assert len(impatient.list_sources(LLAMA, status=SourceStatus.READY)) == 1


class Clock:
    """Monotonic seconds that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store() -> Store:
    store = await open_store("memory")
    await store.publish(publication(), NOW)
    return store


def reaper(store: Store, clock: Clock) -> Reaper:
    return Reaper(store, Metrics(), interval=30, heartbeat_timeout=90, gc_timeout=3600, clock=clock)


async def test_a_registry_that_just_started_deletes_nothing(store: Store) -> None:
    clock = Clock()
    scans = reaper(store, clock)
    await scans.scan(NOW + 2 * HOUR)
    assert len(await store.list_refs(SourceQuery(), 0)) == 1
    assert await store.update(KEY, WorkerState.READY, NOW + 2 * HOUR) is Update.DONE


async def test_a_registry_that_listened_long_enough_deletes(store: Store) -> None:
    clock = Clock()
    scans = reaper(store, clock)
    for clock.now in (30, 60, 90):
        await scans.scan(NOW + 2 * HOUR)
    assert await store.list_refs(SourceQuery(), 0) == []


async def test_a_registry_that_was_frozen_listens_anew(store: Store) -> None:
    clock = Clock()
    scans = reaper(store, clock)
    for clock.now in (30, 60, 90):
        await scans.scan(NOW)
    clock.now = 7200
    await scans.scan(NOW + 2 * HOUR)
    assert len(await store.list_refs(SourceQuery(), 0)) == 1
    for clock.now in (7230, 7260, 7290):
        await scans.scan(NOW + 2 * HOUR)
    assert await store.list_refs(SourceQuery(), 0) == []
