"""What strangers can send to a registry's port: nothing crashes it, hangs it, or makes it grow."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelexpress.client import Client
from modelexpress.errors import RegistryRefused
from modelexpress.identity import SourceIdentity
from modelexpress.wire import p2p_pb2
from modelexpress.wire.p2p_service import method
from modelexpress.wire.records import SourceQuery, SourceStatus, StatusUpdate, WorkerKey
from modelexpress.wire.registry_requests import encode_get, encode_list, encode_publish, encode_update
from tests.support.publications import LLAMA, record
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until

METHODS = ("PublishMetadata", "ListSources", "GetMetadata", "UpdateStatus")
EXPECTED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
KEY = WorkerKey(LLAMA.source_id, "worker-0")
VALID = (
    encode_publish(LLAMA, record(topology={"training_step": "9"})),
    encode_list(SourceQuery(status=SourceStatus.READY, limit=2), LLAMA),
    encode_get(KEY),
    encode_update(StatusUpdate(key=KEY, worker_rank=0, status=SourceStatus.READY, source_load=0.5)),
)
UNMEASURABLE = encode_update(StatusUpdate(key=KEY, worker_rank=0, status=SourceStatus.READY, source_load=float("nan")))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with RegistryProcess(f"sqlite:{tmp_path_factory.mktemp('registry') / 'registry.db'}") as process:
        yield process


@pytest.fixture(scope="module")
def channel(registry: RegistryProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(registry.address, options) as channel:
        yield channel


def call(channel: grpc.Channel, name: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Return status and details of a call with raw bytes."""
    send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method(name))
    try:
        send(data, timeout=20)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


FUZZING = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZING
@given(name=st.sampled_from(METHODS), data=st.binary(max_size=400))
def test_any_bytes_are_answered(channel: grpc.Channel, name: str, data: bytes) -> None:
    assert call(channel, name, data)[0] in EXPECTED


@FUZZING
@given(
    name=st.sampled_from(METHODS),
    valid=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
    end=st.integers(0, 2**16),
)
def test_damaged_requests_are_answered(
    channel: grpc.Channel, name: str, valid: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(valid[: max(end % (2 * len(valid)), 1)])
    for position, value in changes:
        data[position % len(data)] = value
    assert call(channel, name, bytes(data))[0] in EXPECTED


def publish(worker_id: str = "w", **worker: object) -> p2p_pb2.PublishMetadataRequest:
    return p2p_pb2.PublishMetadataRequest(
        identity=p2p_pb2.SourceIdentity(model_name="m"),
        worker=p2p_pb2.WorkerMetadata(**worker),  # type: ignore[arg-type]
        worker_id=worker_id,
    )


TENSORS = [p2p_pb2.TensorDescriptor(name="t")]


@pytest.mark.parametrize(
    ("request_message", "named"),
    [
        (p2p_pb2.PublishMetadataRequest(), "worker_id"),
        (publish(worker_id=""), "worker_id"),
        (p2p_pb2.PublishMetadataRequest(worker_id="w"), "identity"),
        (publish(worker_id="x" * 257), "256"),
        (publish(agent_name="x" * 5000), "worker.agent_name has 5000 characters; the limit is 4096"),
        (publish(nixl_metadata=bytes((16 << 20) + 1)), "worker.nixl_metadata"),
        (publish(topology={str(n): "" for n in range(65)}), "worker.topology has 65 entries; the limit is 64"),
        (publish(topology={"a": "x" * 5000}), "worker.topology"),
        (publish(tensors=TENSORS * 250_001), "worker.tensors has 250001 items; the limit is 250000"),
    ],
)
def test_what_is_too_large_is_named(
    channel: grpc.Channel, request_message: p2p_pb2.PublishMetadataRequest, named: str
) -> None:
    code, details = call(channel, "PublishMetadata", request_message.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in details


def test_a_request_over_the_limit_is_refused(channel: grpc.Channel) -> None:
    code, details = call(channel, "PublishMetadata", bytes(40 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("PublishMetadata", b"\x1a\x02\xff\xfe", "PublishMetadataRequest"),
        ("GetMetadata", p2p_pb2.GetMetadataRequest(mx_source_id="../x", worker_id="w").SerializeToString(), "hex"),
        ("GetMetadata", p2p_pb2.GetMetadataRequest(mx_source_id="0" * 16).SerializeToString(), "worker_id"),
        ("ListSources", b"\x10\x63", "99 is no status"),
        ("ListSources", b"\x0a\x02\x10\x63", "SourceType"),
        ("UpdateStatus", UNMEASURABLE, "source_load"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(channel: grpc.Channel, name: str, data: bytes, named: str) -> None:
    code, details = call(channel, name, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in details


def test_the_client_says_what_was_refused(registry: RegistryProcess) -> None:
    with Client(registry.address) as client, pytest.raises(RegistryRefused, match="model_name has 5000"):
        client.publish(SourceIdentity(model_name="x" * 5000), record())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=2000), preface=st.booleans())
def test_bytes_that_are_no_grpc_leave_it_alive(registry: RegistryProcess, data: bytes, preface: bool) -> None:
    host, port = registry.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if preface else b"") + data)
    assert registry.process.poll() is None


def test_it_neither_grows_nor_keeps_connections(registry: RegistryProcess, channel: grpc.Channel) -> None:
    process = psutil.Process(registry.process.pid)
    host, port = registry.address.rsplit(":", 1)
    garbage = publish(tensors=TENSORS * 100_000).SerializeToString()[:-1]

    def attack() -> None:
        with ExitStack() as stack:
            for _ in range(50):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(20):
            call(channel, "PublishMetadata", garbage)

    for _ in range(6):
        attack()
    # 120 requests of 100,000 tensors, parsed: kept, they would be more than a gigabyte.
    assert process.memory_info().rss < 512 << 20
    with Client(registry.address) as client:
        client.publish(LLAMA, record("after"))
        assert client.get(LLAMA.source_id, "after") is not None
    wait_until(lambda: process.num_fds() < 60)
