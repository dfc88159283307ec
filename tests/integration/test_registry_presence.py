"""Workers that are killed are missed at once, and not after the heartbeat's timeout; those that live stay."""

import signal
import time
from collections.abc import Iterator

import pytest

from modelexpress.client import Client
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.wire.records import SourceRef, SourceStatus, WorkerRecord
from tests.support.materials import SETTINGS, make_material, new_identity
from tests.support.publisher import Publisher
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until


@pytest.fixture
def own_registry() -> Iterator[RegistryProcess]:
    """A registry that a test may stop, with the timeouts that it has by itself: 90 s of silence."""
    with RegistryProcess() as process:
        yield process


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


def sources(registry: str, identity: SourceIdentity, status: SourceStatus) -> list[SourceRef]:
    with Client(registry) as client:
        return client.list_sources(identity, status=status)


def test_a_worker_that_is_killed_is_missed_at_once(registry: str, identity: SourceIdentity) -> None:
    with Publisher(registry, identity) as killed, Publisher(registry, identity) as living:
        assert len(sources(registry, identity, SourceStatus.READY)) == 2
        killed.signal(signal.SIGKILL)
        (lost,) = wait_until(lambda: sources(registry, identity, SourceStatus.STALE))
        assert lost.worker_id == killed.worker_id
        assert [ref.worker_id for ref in sources(registry, identity, SourceStatus.READY)] == [living.worker_id]


def test_a_worker_that_was_missed_wrongly_is_back_with_its_next_heartbeat(
    registry: str, identity: SourceIdentity
) -> None:
    record = WorkerRecord(worker_id="worker", worker_rank=0, status=SourceStatus.READY)
    started = time.monotonic()
    with Client(registry) as client:
        client.publish(identity, record)
        first = client.attend(identity.source_id, "worker", lambda: None)
        second = client.attend(identity.source_id, "worker", lambda: None)
        first.end()
        # Long enough for whoever would miss it.
        wait_until(lambda: time.monotonic() > started + 2)
        assert sources(registry, identity, SourceStatus.READY), "it still holds the other one"
        second.end()
        wait_until(lambda: sources(registry, identity, SourceStatus.STALE))
        assert client.update_status(identity.source_id, "worker", 0, SourceStatus.READY)
        assert sources(registry, identity, SourceStatus.READY)


def test_a_worker_that_withdrew_stays_withdrawn(registry: str, identity: SourceIdentity) -> None:
    with Worker(registry, settings=SETTINGS) as worker:
        publication = worker.publish(make_material(identity=identity))
        assert publication.wait_ready(10)
    assert sources(registry, identity, SourceStatus.STALE)
    with Client(registry) as client:
        assert client.update_status(identity.source_id, publication.worker_id, 0, SourceStatus.READY) is False


def test_a_registry_that_stops_misses_nobody_and_does_not_wait_for_them(
    own_registry: RegistryProcess, identity: SourceIdentity
) -> None:
    settings = SETTINGS.model_copy(update={"heartbeat_interval": 0.2})
    with Worker(own_registry.address, settings=settings) as worker:
        publication = worker.publish(make_material(identity=identity))
        assert publication.wait_ready(10)
        assert own_registry.stop() == 0
        own_registry.start()
        wait_until(lambda: sources(own_registry.address, identity, SourceStatus.READY))
        assert not sources(own_registry.address, identity, SourceStatus.STALE)


def test_who_is_not_published_is_not_attended(registry: str, identity: SourceIdentity) -> None:
    broken: list[str] = []
    with Client(registry) as client:
        attendance = client.attend(identity.source_id, "nobody", lambda: broken.append("at once"))
        wait_until(lambda: not attendance.held)
        assert not attendance.unknown
    assert not broken, "what is refused at once is not asked again at once"


def test_a_registry_of_another_make_is_told_by_its_answer(registry: str, identity: SourceIdentity) -> None:
    with Worker(registry, settings=SETTINGS) as worker, Client(worker.member.endpoint) as client:
        # A server without that call, as a registry of another make is.
        attendance = client.attend(identity.source_id, "worker", lambda: None)
        wait_until(lambda: attendance.unknown)
