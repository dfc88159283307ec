"""A publication and its registry: published as soon and as long as the registry is there, and withdrawn at the end."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelexpress.client import Client
from modelexpress.peer import HOST_TOPOLOGY, PeerClient, Publication, PublicationState, Worker, host_id
from modelexpress.wire.records import SourceRef, SourceStatus
from tests.support.materials import SETTINGS, make_material, new_identity
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until

BEATING = SETTINGS.model_copy(update={"heartbeat_interval": 0.1})


@pytest.fixture
def own_registry() -> Iterator[RegistryProcess]:
    """A registry with an empty store, for tests that kill it."""
    with RegistryProcess() as process:
        yield process


def ready(client: Client, publication: Publication) -> list[SourceRef]:
    return [ref for ref in client.list_sources(status=SourceStatus.READY) if ref.source_id == publication.source_id]


def test_the_record_says_what_targets_need(registry: str) -> None:
    material = replace(make_material(rank=3), accelerator="cuda")
    with Worker(registry, settings=SETTINGS) as worker, Client(registry) as client:
        publication = worker.publish(material)
        assert publication.wait_ready(10)
        found = client.get(publication.source_id, publication.worker_id)
        assert found is not None
        record, identity = found
    assert identity == material.identity
    assert (record.worker_rank, record.accelerator, record.status) == (3, "cuda", SourceStatus.READY)
    assert record.worker_grpc_endpoint == publication.endpoint
    assert record.topology[HOST_TOPOLOGY] == host_id()


def test_a_source_that_starts_before_its_registry_is_published_when_it_appears(
    own_registry: RegistryProcess,
) -> None:
    own_registry.kill()
    with Worker(own_registry.address, settings=BEATING) as worker:
        publication = worker.publish(make_material())
        assert not publication.wait_ready(0.3)
        assert publication.state.value == "publishing"
        own_registry.start()
        assert publication.wait_ready(20)
        assert publication.state.value == "ready"
        with Client(own_registry.address) as client:
            assert len(ready(client, publication)) == 1


def test_a_registry_that_forgot_everything_is_told_again(own_registry: RegistryProcess) -> None:
    with Worker(own_registry.address, settings=BEATING) as worker, Client(own_registry.address) as client:
        publication = worker.publish(make_material())
        assert publication.wait_ready(10)
        own_registry.kill()
        own_registry.start()
        (ref,) = wait_until(lambda: ready(client, publication))
        assert ref.worker_id == worker.worker_id
        wait_until(lambda: publication.state is PublicationState.READY)


def test_heartbeats_refresh_the_time_and_nothing_else(registry: str) -> None:
    identity = new_identity()
    with Worker(registry, settings=BEATING) as worker, Client(registry) as client:
        publication = worker.publish(make_material(identity=identity))
        assert publication.wait_ready(10)
        found = client.get(publication.source_id, publication.worker_id)
        assert found is not None
        marked = replace(found[0], agent_name="set by the test: a publication would replace it")
        client.publish(identity, marked)
        times = set()

        def beaten() -> bool:
            (ref,) = ready(client, publication)
            times.add(ref.updated_at)
            return len(times) > 3

        wait_until(beaten)
        after = client.get(publication.source_id, publication.worker_id)
        assert after is not None
        assert replace(after[0], updated_at=0) == replace(marked, updated_at=0)


def test_heartbeats_tell_how_many_read(registry: str) -> None:
    with Worker(registry, settings=BEATING) as worker, Client(registry) as client:
        publication = worker.publish(make_material())
        assert publication.wait_ready(10)
        with PeerClient(publication.endpoint) as peer:
            for reader in ("one", "two"):
                peer.acquire(publication.source_id, worker.worker_id, reader, "host")
        wait_until(lambda: [ref.source_load for ref in ready(client, publication)] == [2.0])


def test_a_closed_publication_is_listed_by_nobody_and_stays_so(registry: str) -> None:
    with Worker(registry, settings=BEATING) as worker, Client(registry) as client:
        publication = worker.publish(make_material())
        assert publication.wait_ready(10)
        publication.close()
        assert publication.state is PublicationState.CLOSED
        assert ready(client, publication) == []
        late = client.update_status(publication.source_id, publication.worker_id, 0, SourceStatus.READY)
        assert late is False
        assert ready(client, publication) == []


def test_a_publication_that_is_closed_before_it_is_ready_is_not_listed_either(registry: str) -> None:
    with Client(registry) as client, Worker(registry, settings=BEATING) as worker:
        publications = [worker.publish(make_material()) for _ in range(20)]
        for publication in publications:
            publication.close()
        assert [ready(client, publication) for publication in publications] == [[]] * 20


def test_closing_without_a_registry_takes_a_bounded_time(own_registry: RegistryProcess) -> None:
    with Worker(own_registry.address, settings=BEATING) as worker:
        publication = worker.publish(make_material())
        assert publication.wait_ready(10)
        own_registry.kill()
        started = time.monotonic()
        publication.close()
        assert time.monotonic() - started < 15, "a deadline, not a figure"
        assert publication.state is PublicationState.CLOSED
        with PeerClient(publication.endpoint) as peer:
            assert peer.readers() == [], "the server is the worker's, and goes on"
