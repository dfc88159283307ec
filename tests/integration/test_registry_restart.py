"""A registry that stops, crashes, or shares its store with another loses nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from modelexpress.client import Client
from modelexpress.errors import RegistryUnreachable
from modelexpress.wire.p2p_service import method
from modelexpress.wire.records import SourceStatus
from modelexpress.wire.registry_requests import encode_publish
from tests.support.publications import LLAMA, record
from tests.support.redis_server import RedisServer
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'registry.db'}"
        return
    with RedisServer(tmp_path) as redis:
        yield redis.url


def test_a_killed_registry_comes_back_with_everything(store: str) -> None:
    with RegistryProcess(store) as registry, Client(registry.address) as client:
        for rank in range(50):
            client.publish(LLAMA, record(f"worker-{rank:02}", worker_rank=rank))
        client.update_status(LLAMA.source_id, "worker-07", 7, SourceStatus.STALE)
        before = client.list_sources()
        registry.kill()
        registry.start()
        assert client.list_sources() == before
        assert len(client.list_sources(status=SourceStatus.READY)) == 49
        assert client.update_status(LLAMA.source_id, "worker-07", 7, SourceStatus.READY) is False
        assert client.update_status(LLAMA.source_id, "worker-08", 8, SourceStatus.READY) is True


def test_a_killed_redis_comes_back_with_everything(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis, RegistryProcess(redis.url) as registry, Client(registry.address) as client:
        client.publish(LLAMA, record())
        redis.kill()
        with pytest.raises(RegistryUnreachable, match="Redis"):
            client.list_sources()
        redis.start()
        assert len(client.list_sources()) == 1
        assert client.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY)


@pytest.fixture
def two_clients(tmp_path: Path) -> Iterator[tuple[Client, Client]]:
    """Clients of two registries that share one Redis."""
    with (
        RedisServer(tmp_path) as redis,
        RegistryProcess(redis.url) as one,
        RegistryProcess(redis.url) as two,
        Client(one.address) as first,
        Client(two.address) as second,
    ):
        yield first, second


def test_two_registries_on_one_redis_are_one(two_clients: tuple[Client, Client]) -> None:
    first, second = two_clients
    first.publish(LLAMA, record("from-one"))
    second.publish(LLAMA, record("from-two"))
    assert {ref.worker_id for ref in first.list_sources(LLAMA)} == {"from-one", "from-two"}
    assert second.get(LLAMA.source_id, "from-one") is not None
    assert second.update_status(LLAMA.source_id, "from-one", 0, SourceStatus.STALE)
    assert first.update_status(LLAMA.source_id, "from-one", 0, SourceStatus.READY) is False


def test_withdrawing_wins_over_heartbeats_elsewhere(two_clients: tuple[Client, Client]) -> None:
    first, second = two_clients
    first.publish(LLAMA, record())
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            second.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY)

    beating = threading.Thread(target=beat, name="heartbeats")
    beating.start()
    try:
        assert first.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.STALE)
        for _ in range(50):
            assert first.list_sources(LLAMA, status=SourceStatus.READY) == []
    finally:
        ended.set()
        beating.join()


def test_a_stopping_registry_finishes_its_calls(tmp_path: Path) -> None:
    with RegistryProcess(f"sqlite:{tmp_path / 'registry.db'}") as registry:
        channel = grpc.insecure_channel(registry.address)
        publish: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method("PublishMetadata"))
        requests = [encode_publish(LLAMA, record(f"w{n}", nixl_metadata=bytes(8 << 20))) for n in range(8)]
        answers = [publish.future(request, timeout=30) for request in requests]
        wait_until(lambda: any(answer.done() for answer in answers))
        assert registry.stop() == 0
        codes = [answer.code() for answer in answers]
        channel.close()
        registry.start()
        with Client(registry.address) as client:
            kept = {ref.worker_id for ref in client.list_sources()}
        answered = {f"w{n}" for n, code in enumerate(codes) if code is grpc.StatusCode.OK}
        assert answered
        # What was not answered was refused before it began, never broken off.
        assert kept == answered


def test_a_client_survives_a_restart_amid_heartbeats(tmp_path: Path) -> None:
    registry = RegistryProcess(f"sqlite:{tmp_path / 'registry.db'}")
    with registry, Client(registry.address, timeout=20) as client:
        client.publish(LLAMA, record())
        outcomes: list[bool] = []

        def beat() -> None:
            beats = (client.update_status(LLAMA.source_id, "worker-0", 0, SourceStatus.READY) for _ in range(300))
            outcomes.extend(beats)

        beating = threading.Thread(target=beat, name="heartbeats")
        beating.start()
        wait_until(lambda: outcomes)
        registry.kill()
        registry.start()
        beating.join()
        assert outcomes == [True] * 300
