"""What a client says when no registry answers, or something else does."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from modelexpress.client import AsyncClient, Client
from modelexpress.errors import RegistryError, RegistryProtocolError, RegistryUnreachable
from modelexpress.wire.p2p_service import SERVICE_NAME
from modelexpress.wire.records import SourceStatus
from tests.support.publications import LLAMA, record
from tests.support.registries import RegistryProcess


class Silent(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, name="web server")
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def grpc_server() -> Iterator[Callable[[bytes], str]]:
    """A gRPC server whose registry answers every call with the bytes given, or has no registry for None."""
    server = grpc.server(ThreadPoolExecutor(2))

    def start(answer: bytes | None) -> str:
        if answer is not None:
            handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
                lambda _request, _context: answer
            )
            calls = {"ListSources": handler, "GetMetadata": handler}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, calls),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"127.0.0.1:{port}"

    yield start
    server.stop(0).wait()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def failure(address: str, timeout: float = 5.0) -> RegistryError:
    """Return the error that both clients raise."""

    async def ask() -> None:
        async with AsyncClient(address, timeout=timeout) as client:
            await client.list_sources()

    with Client(address, timeout=timeout) as client, pytest.raises(RegistryError) as blocking:
        client.list_sources()
    with pytest.raises(RegistryError) as awaited:
        asyncio.run(ask())
    assert type(awaited.value) is type(blocking.value)
    assert address in str(awaited.value)
    return blocking.value


def test_nobody_there() -> None:
    error = failure(free_address())
    assert isinstance(error, RegistryUnreachable)
    assert "mx serve" in str(error)


def test_no_such_host() -> None:
    assert isinstance(failure("no-such-host.invalid:8001"), RegistryUnreachable)


def test_nothing_said_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        error = failure(f"127.0.0.1:{mute.getsockname()[1]}", timeout=1.0)
    assert isinstance(error, RegistryUnreachable)
    assert time.monotonic() - started < 10


def test_a_web_server(web_server: str) -> None:
    assert isinstance(failure(web_server), RegistryProtocolError)


def test_another_grpc_server(grpc_server: Callable[[bytes | None], str]) -> None:
    assert isinstance(failure(grpc_server(None)), RegistryProtocolError)


def test_an_answer_that_is_none(grpc_server: Callable[[bytes | None], str]) -> None:
    address = grpc_server(b"\xff\xff\xff")
    with Client(address) as client, pytest.raises(RegistryProtocolError, match="ListSourcesResponse"):
        client.list_sources()


def test_an_identity_of_a_newer_protocol(grpc_server: Callable[[bytes | None], str]) -> None:
    address = grpc_server(b"\x08\x01\x2a\x02\x10\x63")
    with Client(address) as client, pytest.raises(RegistryProtocolError, match="SourceType"):
        client.get("0" * 16, "w")


def test_a_closed_client_says_so() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.list_sources()


def test_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MX_SERVER_ADDRESS", "http://second:1")
    assert Client().address == "second:1"
    monkeypatch.setenv("MODEL_EXPRESS_URL", "https://first:1/")
    assert Client().address == "first:1"
    assert Client("http://argument:1").address == "argument:1"


async def test_the_async_client_makes_every_call() -> None:
    with RegistryProcess() as registry:
        async with AsyncClient(registry.address) as client:
            source_id = await client.publish(LLAMA, record())
            assert await client.update_status(source_id, "worker-0", 0, SourceStatus.READY, 0.5)
            (ref,) = await client.list_sources(LLAMA, status=SourceStatus.READY, worker_rank=0, limit=5)
            assert ref.source_load == 0.5
            found = await client.get(source_id, "worker-0")
            assert found is not None
            assert found[0].tensors == record().tensors


def test_many_threads_share_one_client() -> None:
    with RegistryProcess() as registry, Client(registry.address) as client:

        def publish(number: int) -> str:
            return client.publish(LLAMA, record(f"w{number}"))

        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(publish, range(200))) == {LLAMA.source_id}
        assert len(client.list_sources(LLAMA)) == 200
