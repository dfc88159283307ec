"""What strangers send to a worker's port: it answers honest readers as before, and grows by nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.errors import SourceBusy
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient
from modelexpress.peer.shelf import MOST_LEASES
from modelexpress.wire import p2p_pb2, peer_pb2, peer_pb2_grpc
from tests.support.materials import acquire, client_of, make_material, new_identity, worker_server
from tests.support.publisher import Publisher
from tests.support.waiting import wait_until

TENSORS = 20_000
MOST_GROWTH = 64 << 20
"""Bytes: some buffers and the stacks of some threads, far less than what the tests send."""

ENDLESS = "x" * 2000 + "{}"
"""Names that make a manifest far larger than what gRPC sends to a reader that takes nothing."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in (peer_pb2, p2p_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    if service.name != "P2pService"
    for method in service.methods
]


@dataclass(frozen=True)
class Victim:
    """A worker in a process of its own, and what it needed before anybody was rude to it."""

    publisher: Publisher
    identity: SourceIdentity

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.publisher.process.pid)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.publisher.endpoint.rpartition(":")
        return host, int(port)

    def serve_an_honest_reader(self) -> None:
        with PeerClient(self.publisher.endpoint) as client:
            grant = client.acquire(self.identity.source_id, self.publisher.worker_id, "honest", "host")
            assert len(client.manifest(grant).tensors) == TENSORS
            client.release(grant.lease_id)


@pytest.fixture(scope="module")
def victim(registry: str) -> Iterator[Victim]:
    identity = new_identity()
    with Publisher(registry, identity, "--tensors", str(TENSORS)) as publisher:
        victim = Victim(publisher, identity)
        victim.serve_an_honest_reader()
        yield victim


@pytest.fixture(autouse=True)
def unharmed(victim: Victim) -> Iterator[None]:
    """Check after each test that the worker is as it was."""
    process = victim.process
    memory, descriptors = process.memory_info().rss, process.num_fds()
    yield
    victim.serve_an_honest_reader()
    assert process.memory_info().rss - memory < MOST_GROWTH
    assert process.num_threads() < MOST_LEASES + 64
    wait_until(lambda: process.num_fds() <= descriptors + 1)


frames = st.builds(
    lambda kind, flags, stream, payload: (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    ),
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 7),
    st.binary(max_size=64),
)
greetings = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda rest: PREFACE + rest, st.binary(max_size=300)),
    st.builds(lambda many: PREFACE + EMPTY_SETTINGS + b"".join(many), st.lists(frames, max_size=8)),
)


@settings(max_examples=60, deadline=None)
@given(data=greetings)
def test_bytes_that_are_no_grpc(victim: Victim, data: bytes) -> None:
    with socket.create_connection(victim.address, timeout=5) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass


@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(METHODS), data=st.binary(max_size=200))
def test_messages_that_are_none(victim: Victim, method: str, data: bytes) -> None:
    with grpc.insecure_channel(victim.publisher.endpoint) as channel:
        send: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
        try:
            list(send(data, timeout=5))
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, "it hangs"
    assert code is not grpc.StatusCode.UNAVAILABLE, "it is gone"


def test_connections_that_never_say_a_word(victim: Victim) -> None:
    with ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(socket.create_connection(victim.address, timeout=5))
            sock.sendall(PREFACE[: number % len(PREFACE)])
        victim.serve_an_honest_reader()


@pytest.mark.parametrize("field", ["source_id", "worker_id"])
def test_endless_names_are_refused_in_few_words(victim: Victim, field: str) -> None:
    request = peer_pb2.AcquireLeaseRequest(source_id=victim.identity.source_id, reader_id="r", reader_host="h")
    setattr(request, field, "é" * 30_000)
    with grpc.insecure_channel(victim.publisher.endpoint) as channel:
        stub = peer_pb2_grpc.PeerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.AcquireLease(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(caught.value.details() or "") < 1000
        request.reader_host = "é" * 5_000_000
        with pytest.raises(grpc.RpcError) as caught:
            stub.AcquireLease(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_endless_names_of_readers_are_cut(victim: Victim) -> None:
    with PeerClient(victim.publisher.endpoint) as client:
        grant = client.acquire(victim.identity.source_id, "", "é" * 10_000, "é" * 10_000)
        (reader,) = client.readers()
        client.release(grant.lease_id)
    assert (len(reader.reader_id), len(reader.reader_host)) == (128, 256)


def test_readers_that_take_nothing_do_not_keep_honest_ones_waiting() -> None:
    endless, short = make_material(TENSORS, name=ENDLESS), make_material()
    with worker_server(endless, short) as server, client_of(server) as client, ExitStack() as stack:
        streams = []
        for _ in range(MOST_LEASES - 1):
            channel = stack.enter_context(grpc.insecure_channel(client.address))
            request = peer_pb2.ReadManifestRequest(lease_id=acquire(client, endless).lease_id)
            streams.append(peer_pb2_grpc.PeerServiceStub(channel).ReadManifest(request))
            next(streams[-1])  # and never again
        assert client.manifest(acquire(client, short)).tensors == short.manifest.tensors


def test_a_lease_streams_one_answer_at_a_time_and_none_after_its_end() -> None:
    material = make_material(TENSORS, name=ENDLESS)
    with worker_server(material) as server, client_of(server) as client:
        grant = acquire(client, material)
        with grpc.insecure_channel(client.address) as channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            stream = stub.ReadManifest(peer_pb2.ReadManifestRequest(lease_id=grant.lease_id))
            next(stream)
            with pytest.raises(SourceBusy, match="one stream at a time"):
                client.manifest(grant)
            client.release(grant.lease_id)
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
