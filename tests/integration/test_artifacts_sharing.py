"""Sharing: caches are offered when the engine is ready, never before, and not a moment after it is gone."""

import itertools
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelexpress.artifacts import snapshot
from modelexpress.artifacts.fetch import fetch
from modelexpress.artifacts.lifecycle import Sharing, share_when_ready
from modelexpress.client import Client
from modelexpress.errors import ConfigurationError, SourceGone, TransportError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient, Worker
from modelexpress.settings import Settings
from modelexpress.wire.records import SourceRef, SourceStatus
from tests.support.artifact_sharer import ArtifactSharer
from tests.support.caches import KINDS, cache_files, read_cache, write_cache
from tests.support.engine_server import EngineServer
from tests.support.materials import make_material, new_identity
from tests.support.waiting import wait_until

PLAIN, OTHER = KINDS["plain"], KINDS["other"]


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def client(registry: str) -> Iterator[Client]:
    with Client(registry) as client:
        yield client


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", cache_files(4, 1024))


def settings(registry: str, **others: object) -> Settings:
    chosen = {"registry": registry, "worker_grpc_port": 0, "artifact_transfer": True, "heartbeat_interval": 0.1}
    return Settings.model_validate(chosen | others)


def share(settings: Settings, identity: SourceIdentity, root: Path, ready: threading.Event | None = None) -> Sharing:
    sharing = share_when_ready(identity, [PLAIN], settings, ready, environ={"TEST_CACHE": str(root)})
    assert sharing is not None
    return sharing


def ready_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def listed(client: Client, identity: SourceIdentity) -> list[SourceRef]:
    return client.list_sources(PLAIN.identity(identity), status=SourceStatus.READY)


def test_a_cache_is_offered_when_the_engine_answers(
    registry: str, client: Client, identity: SourceIdentity, root: Path, tmp_path: Path
) -> None:
    with EngineServer(503) as engine:
        chosen = settings(registry, artifact_ready_url=engine.url)
        with share(chosen, identity, root) as sharing:
            engine.wait_asked(2)
            assert not listed(client, identity)
            engine.status = 200
            assert sharing.wait_offered(20)
            assert sharing.publications["plain"].wait_ready(20)
            fetch(PLAIN, PLAIN.identity(identity), tmp_path / "got", settings=chosen)
    assert read_cache(tmp_path / "got") == cache_files(4, 1024)
    assert not listed(client, identity)


def test_the_registry_is_told_what_is_offered(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    with share(settings(registry), identity, root, ready_event()) as sharing:
        assert sharing.wait_offered(20)
        publication = sharing.publications["plain"]
        assert publication.wait_ready(20)
        found = client.get(publication.source_id, publication.worker_id)
    assert found is not None
    artifact = found[0].artifact
    assert artifact is not None
    assert (artifact.total_size, artifact.file_count, artifact.chunk_count, artifact.node_rank) == (4096, 5, 4, 0)
    assert len(artifact.artifact_id) == 64


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://localhost/", "localhost:8000", ""])
def test_a_url_of_another_scheme_is_refused_with_its_reason(
    registry: str, identity: SourceIdentity, root: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {
        "MX_SERVER_ADDRESS": registry,
        "MX_WORKER_GRPC_PORT": "0",
        "MX_ARTIFACT_TRANSFER": "1",
        "MX_ARTIFACT_READY_URL": url,
    }
    chosen = Settings.read(environment)
    assert share_when_ready(identity, [PLAIN], chosen, environ={"TEST_CACHE": str(root)}) is None
    said = f"MX_ARTIFACT_READY_URL='{url}' is no readiness URL" if url else "nothing tells when the engine is ready"
    assert said in caplog.text


def test_malformed_numbers_fall_back_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    chosen = Settings.read({"MX_ARTIFACT_READY_TIMEOUT_SECS": "soon", "MX_ARTIFACT_TRANSFER_CHUNK_SIZE": "64M"})
    assert chosen.artifact_ready_timeout == 1800
    assert chosen.artifact_chunk_bytes == 64 << 20
    assert "MX_ARTIFACT_READY_TIMEOUT_SECS='soon' is not usable" in caplog.text
    assert "MX_ARTIFACT_TRANSFER_CHUNK_SIZE='64M' is not usable" in caplog.text


def test_an_engine_that_never_gets_ready_is_given_up(
    registry: str, client: Client, identity: SourceIdentity, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineServer(503) as engine:
        chosen = settings(registry, artifact_ready_url=engine.url, artifact_ready_timeout=0.3)
        with share(chosen, identity, root):
            wait_until(lambda: "not ready after 0.3 s" in caplog.text)
    assert not listed(client, identity)


def test_an_engine_that_stops_is_withdrawn_and_must_be_seen_ready_anew(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    engine = EngineServer(200)
    with share(settings(registry, artifact_ready_url=engine.url), identity, root):
        (first,) = wait_until(lambda: listed(client, identity))
        engine.stop()
        wait_until(lambda: not listed(client, identity))
        with EngineServer(503, port=engine.port) as restarted:
            restarted.wait_asked(2)
            assert not listed(client, identity), "that it was ready once does not count"
            restarted.status = 200
            (second,) = wait_until(lambda: listed(client, identity))
            assert second.worker_id != first.worker_id


def test_an_engine_that_misses_one_question_stays_a_source(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    answers = [True, False, False, True]
    asked: list[bool] = []

    def ready() -> bool:
        asked.append(answers[len(asked) % len(answers)])
        return asked[-1]

    sharing = share_when_ready(identity, [PLAIN], settings(registry), ready, environ={"TEST_CACHE": str(root)})
    assert sharing is not None
    with sharing:
        (first,) = wait_until(lambda: listed(client, identity))
        wait_until(lambda: len(asked) > 12)
        assert [ref.worker_id for ref in listed(client, identity)] == [first.worker_id]


def test_a_cache_that_is_written_to_is_offered_later(
    registry: str,
    client: Client,
    identity: SourceIdentity,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    done = threading.Event()
    numbers = itertools.count()
    read = snapshot._read

    def compile_then_read(*args: Any) -> Any:
        # Between the list of the files and their content, each time: a thread of its own might come too late.
        if not done.is_set():
            (root / f"kernel-{next(numbers) % 50}.so").write_bytes(b"%d" % next(numbers))
        return read(*args)

    monkeypatch.setattr(snapshot, "_read", compile_then_read)
    with share(settings(registry), identity, root, ready_event()) as sharing:
        wait_until(lambda: "the cache is being written to" in caplog.text, 60)
        assert not listed(client, identity)
        done.set()
        assert sharing.wait_offered(60)
        wait_until(lambda: listed(client, identity))


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_a_cache_without_files_is_not_offered_and_others_are(
    registry: str, client: Client, identity: SourceIdentity, root: Path, make: bool
) -> None:
    if make:
        Path(f"{root}-other").mkdir()
    sharing = share_when_ready(
        identity, [OTHER, PLAIN], settings(registry), ready_event(), environ={"TEST_CACHE": str(root)}
    )
    assert sharing is not None
    with sharing:
        assert sharing.wait_offered(20)
        assert set(sharing.publications) == {"plain"}


def test_a_kind_that_cannot_be_sealed_leaves_the_others_alone(
    registry: str, identity: SourceIdentity, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(f"{root}-other").write_text("a file where the folder should be")
    kinds = [OTHER, PLAIN]
    sharing = share_when_ready(identity, kinds, settings(registry), ready_event(), environ={"TEST_CACHE": str(root)})
    assert sharing is not None
    with sharing:
        assert sharing.wait_offered(20)
        assert set(sharing.publications) == {"plain"}


@pytest.mark.parametrize(("how", "status"), [("return", 0), ("exit", 3)])
def test_a_process_that_ends_withdraws_its_caches(
    registry: str, client: Client, identity: SourceIdentity, root: Path, how: str, status: int
) -> None:
    with ArtifactSharer(registry, identity, root) as sharer:
        assert listed(client, identity)
        sharer.tell(how)
        assert sharer.process.wait(30) == status
        assert not listed(client, identity)


def test_a_process_that_is_terminated_withdraws_its_caches(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    with ArtifactSharer(registry, identity, root) as sharer:
        sharer.process.send_signal(signal.SIGTERM)
        assert sharer.process.wait(30) == -signal.SIGTERM
        assert not listed(client, identity)


def test_a_forked_child_does_not_end_the_sharing_of_its_parent(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    with ArtifactSharer(registry, identity, root) as sharer:
        sharer.tell("fork")
        assert sharer.line() == "forked"
        assert listed(client, identity)


def test_the_cleaning_up_of_a_stale_publisher_leaves_its_successor_alone(
    registry: str, client: Client, identity: SourceIdentity, root: Path, tmp_path: Path
) -> None:
    with ArtifactSharer(registry, identity, root) as old, ArtifactSharer(registry, identity, root) as new:
        assert old.worker_id != new.worker_id
        old.tell("close")
        assert old.line() == "closed"
        assert [ref.worker_id for ref in listed(client, identity)] == [new.worker_id]
        old.tell("")
        assert old.process.wait(30) == 0
        report = fetch(PLAIN, PLAIN.identity(identity), tmp_path / "got", settings=settings(registry))
        assert report.source == new.worker_id


def test_stale_wins_over_what_is_published_at_the_same_moment(registry: str, client: Client) -> None:
    for _ in range(10):
        worker = Worker(settings=settings(registry))
        identities = [new_identity() for _ in range(6)]
        started = threading.Event()
        publishing = threading.Thread(target=_publish_all, args=(worker, identities, started))
        publishing.start()
        started.wait(20)
        worker.close()
        publishing.join(20)
        assert not [identity for identity in identities if client.list_sources(identity, status=SourceStatus.READY)]


def test_what_is_withdrawn_is_not_read_any_more(registry: str, identity: SourceIdentity, root: Path) -> None:
    with share(settings(registry), identity, root, ready_event()) as sharing, Worker(settings=settings(registry)):
        assert sharing.wait_offered(20)
        publication = sharing.publications["plain"]
        with PeerClient(publication.endpoint) as peer:
            peer.acquire(publication.source_id, publication.worker_id, "reader", "host")
            publication.close()
            with pytest.raises(SourceGone):
                peer.acquire(publication.source_id, publication.worker_id, "reader", "host")


def test_a_worker_that_serves_other_things_goes_on_when_the_sharing_ends(
    registry: str, client: Client, identity: SourceIdentity, root: Path
) -> None:
    weights = make_material()
    with Worker(settings=settings(registry)) as worker:
        publication = worker.publish(weights)
        assert publication.wait_ready(20)
        sharing = share_when_ready(
            identity, [PLAIN], settings(registry), ready_event(), worker=worker, environ={"TEST_CACHE": str(root)}
        )
        assert sharing is not None
        with sharing:
            (ref,) = wait_until(lambda: listed(client, identity))
            assert ref.worker_id == worker.worker_id
        assert not listed(client, identity)
        assert client.list_sources(weights.identity, status=SourceStatus.READY)


def test_sharing_is_opted_into(identity: SourceIdentity, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert share_when_ready(identity, [PLAIN], Settings(), ready_event()) is None
    assert "MX_ARTIFACT_TRANSFER is not 1" in caplog.text
    assert share_when_ready(identity, [PLAIN], Settings(artifact_transfer=True, p2p_metadata=False), None) is None
    assert "MX_P2P_METADATA=0" in caplog.text


def test_closing_twice_is_allowed(registry: str, identity: SourceIdentity, root: Path) -> None:
    sharing = share(settings(registry), identity, root, ready_event())
    sharing.close()
    sharing.close()
    assert sharing.publications == {}


def _publish_all(worker: Worker, identities: list[SourceIdentity], started: threading.Event) -> None:
    """Publish one after the other, until the worker is closed."""
    for identity in identities:
        try:
            worker.publish(make_material(identity=identity))
        except (ConfigurationError, TransportError):
            return
        finally:
            started.set()
