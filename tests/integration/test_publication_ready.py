"""A publication beside an engine: the registry hears of it when a real health page says that the engine is ready."""

import logging
import time
from collections.abc import Iterator

import pytest

from modelexpress.client import Client
from modelexpress.engines import process_worker
from modelexpress.peer import PeerClient, Publication, PublicationState, UrlProbe, Worker
from modelexpress.settings import Settings
from modelexpress.wire.records import SourceStatus
from tests.support.engine_server import EngineServer
from tests.support.materials import SETTINGS, make_material
from tests.support.waiting import wait_until


@pytest.fixture
def engine() -> Iterator[EngineServer]:
    with EngineServer() as engine:
        yield engine


def listed(registry: str, publication: Publication, status: SourceStatus | None = None) -> bool:
    with Client(registry) as client:
        return publication.source_id in {ref.source_id for ref in client.list_sources(status=status)}


def beside(engine: EngineServer, registry: str, settings: Settings = SETTINGS) -> Worker:
    return Worker(registry, settings=settings, ready=UrlProbe(engine.url))


def test_nothing_is_listed_before_the_engine_is_ready(registry: str, engine: EngineServer) -> None:
    with beside(engine, registry) as worker:
        publication = worker.publish(make_material())
        engine.wait_asked(2)
        assert publication.state is PublicationState.PUBLISHING
        assert not listed(registry, publication)
        engine.status = 200
        assert publication.wait_ready(20)
        assert listed(registry, publication, SourceStatus.READY)
    assert not listed(registry, publication, SourceStatus.READY)


def test_who_is_sent_there_is_let_in_before(registry: str, engine: EngineServer) -> None:
    material = make_material()
    with beside(engine, registry) as worker, PeerClient(worker.member.endpoint, 10) as client:
        worker.publish(material)
        grant = client.acquire(material.identity.source_id, worker.worker_id, "reader", "elsewhere")
        assert client.manifest(grant).same_content(material.manifest)


def test_an_engine_that_never_is_ready_is_given_up(
    registry: str, engine: EngineServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"artifact_ready_timeout": 0.3})
    with caplog.at_level(logging.WARNING), beside(engine, registry, settings) as worker:
        publication = worker.publish(make_material())
        wait_until(lambda: "is not announced" in caplog.text)
        asked = engine.asked
        assert "not ready after 0.3 s (MX_ARTIFACT_READY_TIMEOUT_SECS)" in caplog.text
        assert not listed(registry, publication)
    assert engine.asked == asked


def test_closing_does_not_wait_for_the_engine(registry: str, engine: EngineServer) -> None:
    worker = beside(engine, registry)
    publication = worker.publish(make_material())
    engine.wait_asked(1)
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 5
    assert not listed(registry, publication)


def test_a_url_that_cannot_tell_is_said_and_weights_are_offered_at_once(
    registry: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_worker, "_workers", {})
    chosen = SETTINGS.model_copy(update={"registry": registry, "artifact_ready_url": "file:///etc/hostname"})
    with caplog.at_level(logging.WARNING):
        worker = process_worker.process_worker(0, chosen)
    assert worker is not None
    with worker:
        assert "'file:///etc/hostname' is no readiness URL" in caplog.text
        assert worker.publish(make_material()).wait_ready(20)
