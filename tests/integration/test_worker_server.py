"""The worker server: what it answers about its materials, and to whom."""

import dataclasses
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from modelexpress.errors import (
    AccessDenied,
    ConfigurationError,
    LeaseExpired,
    ManifestInvalid,
    PeerUnreachable,
    RegionWithdrawn,
    SourceBusy,
    SourceGone,
)
from modelexpress.peer import HeldLease, PeerClient
from modelexpress.peer.server import WorkerServer
from modelexpress.peer.shelf import MOST_LEASES
from modelexpress.wire import p2p_pb2, p2p_pb2_grpc, peer_pb2, peer_pb2_grpc
from tests.support.materials import acquire, client_of, make_material, open_transport, read_all, worker_server
from tests.support.waiting import wait_until

LONG_NAME = "model.layers.{}.self_attention." + "x" * 200


def test_a_manifest_of_twenty_thousand_tensors_arrives_in_pages() -> None:
    material = make_material(20_000, name=LONG_NAME)
    with worker_server(material) as server, client_of(server) as client:
        grant = acquire(client, material)
        received = client.manifest(grant)
        # A channel with gRPC's own limit of 4 MiB a message, as readers of another make would have.
        with grpc.insecure_channel(client.address) as channel:
            request = peer_pb2.ReadManifestRequest(lease_id=grant.lease_id)
            pages = list(peer_pb2_grpc.PeerServiceStub(channel).ReadManifest(request, timeout=10))
    assert len(pages) > 1
    assert sum(len(page.names) for page in pages) == 20_000
    original = material.manifest
    assert np.array_equal(received.digests, original.digests)
    for field in dataclasses.fields(original):
        if field.name != "digests":
            assert getattr(received, field.name) == getattr(original, field.name)


def test_a_lease_lasts_as_long_as_its_reader_is_heard() -> None:
    material = make_material()
    with worker_server(material, lease_ttl=0.5) as server, client_of(server) as client:
        silent, heard = acquire(client, material, reader="silent"), acquire(client, material, reader="heard")
        with HeldLease(client, heard) as lease:
            lease.verified_bytes = 128
            wait_until(lambda: [(r.reader_id, r.verified_bytes) for r in client.readers()] == [("heard", 128)])
        assert client.readers() == []
        silent = dataclasses.replace(silent, pages=())  # small manifests come with the lease
        for call in (client.manifest, lambda grant: client.report(grant.lease_id, 0)):
            with pytest.raises(LeaseExpired):
                call(silent)


def test_progress_is_told_to_whoever_watches() -> None:
    material = make_material()
    with worker_server(material) as server, client_of(server) as client:
        grant = acquire(client, material)
        assert client.report(grant.lease_id, 100) == 0, "no limit was set"
        (reader,) = client.readers(material.identity.source_id)
        assert (reader.reader_id, reader.reader_host, reader.verified_bytes) == ("reader", "host", 100)
        assert reader.total_bytes == material.manifest.total_bytes
        assert client.readers("0" * 16) == []
        client.release(grant.lease_id)
        client.release(grant.lease_id)
        assert client.readers() == []


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_the_memory_is_closed_to_a_reader_whose_lease_ended(transport: str) -> None:
    material = make_material()
    with worker_server(material) as server, client_of(server) as client:
        ended, running = acquire(client, material), acquire(client, material)
        client.release(ended.lease_id)
        with pytest.raises(AccessDenied):
            open_transport(ended, transport)
        open_transport(running, transport).reader.close()


def test_one_lease_too_many_is_refused_until_another_ends() -> None:
    material = make_material()
    with worker_server(material) as server, client_of(server) as client:
        grants = [acquire(client, material) for _ in range(MOST_LEASES)]
        with pytest.raises(SourceBusy, match=f"{MOST_LEASES} readers"):
            acquire(client, material)
        client.release(grants[0].lease_id)
        acquire(client, material)


def test_another_worker_on_the_port_says_so_on_both_services() -> None:
    material = make_material()
    with worker_server(material, worker_id="old") as server:
        port = server.port or 0
    with worker_server(material, worker_id="new", port=port) as server, client_of(server) as client:
        assert server.port == port
        with pytest.raises(SourceGone, match="worker new answers here, not old"):
            acquire(client, material, worker_id="old")
        with grpc.insecure_channel(client.address) as channel:
            stub = p2p_pb2_grpc.WorkerServiceStub(channel)
            source_id = material.identity.source_id
            old = p2p_pb2.GetTensorManifestRequest(mx_source_id=source_id, worker_id="old")
            other = p2p_pb2.GetTensorManifestRequest(mx_source_id="0" * 16)
            prepare = p2p_pb2.PrepareTensorReadRequest(mx_source_id=source_id, worker_id="old")
            release = p2p_pb2.ReleaseTensorReadRequest(mx_source_id=source_id, worker_id="old")
            refused = grpc.StatusCode.FAILED_PRECONDITION
            assert status_of(lambda: stub.GetTensorManifest(old)) is refused
            assert status_of(lambda: stub.GetTensorManifest(other)) is refused
            assert status_of(lambda: stub.PrepareTensorRead(prepare)) is refused
            assert status_of(lambda: stub.ReleaseTensorRead(release)) is refused


def status_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


@pytest.mark.parametrize("worker_id", [None, "worker"])
def test_a_fleet_reader_gets_the_tensors_with_or_without_naming_the_worker(worker_id: str | None) -> None:
    material = make_material(3, rank=7)
    source_id = material.identity.source_id
    with worker_server(material) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = p2p_pb2_grpc.WorkerServiceStub(channel)
        answer = stub.GetTensorManifest(p2p_pb2.GetTensorManifestRequest(mx_source_id=source_id, worker_id=worker_id))
        lease = stub.PrepareTensorRead(p2p_pb2.PrepareTensorReadRequest(mx_source_id=source_id, worker_id=worker_id))
        assert lease.manifest == answer
        assert [reader.source_id for reader in server.shelf.leases.readers()] == [source_id]
        stub.ReleaseTensorRead(p2p_pb2.ReleaseTensorReadRequest(mx_source_id=source_id, lease_id=lease.lease_id))
        assert server.shelf.leases.readers() == []
    assert (answer.mx_source_id, answer.worker_id, answer.worker_rank) == (source_id, "worker", 7)
    base = material.regions[0].address
    assert [(t.name, t.addr - base, t.size, t.dtype) for t in answer.tensors] == [
        (f"tensor.{i}", 64 * i, 64, "torch.float32") for i in range(3)
    ]


def test_an_artifact_that_is_not_offered_is_refused() -> None:
    with worker_server() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = p2p_pb2_grpc.WorkerServiceStub(channel)
        header = p2p_pb2.GetArtifactManifestHeaderRequest()
        assert status_of(lambda: stub.GetArtifactManifestHeader(header)) is grpc.StatusCode.FAILED_PRECONDITION
        chunks = p2p_pb2.GetArtifactManifestChunksRequest()
        assert status_of(lambda: stub.GetArtifactManifestChunks(chunks)) is grpc.StatusCode.FAILED_PRECONDITION


def test_removing_one_material_leaves_the_others_and_their_readers() -> None:
    going, staying = make_material(seed=1), make_material(seed=2)
    with worker_server(going, staying) as server, client_of(server) as client:
        gone, kept = acquire(client, going), acquire(client, staying)
        with (
            open_transport(gone, "tcp").reader as cut,
            open_transport(kept, "tcp").reader as reader,
        ):
            assert read_all(cut, going) == bytes(going.regions[0].view())
            server.shelf.remove(going.identity.source_id)
            with pytest.raises(RegionWithdrawn):
                read_all(cut, going)
            with pytest.raises(RegionWithdrawn):
                open_transport(gone, "tcp")
            assert read_all(reader, staying) == bytes(staying.regions[0].view())
            open_transport(kept, "tcp").reader.close()
        assert [reader.source_id for reader in client.readers()] == [staying.identity.source_id]
        assert client.manifest(kept).tensors == staying.manifest.tensors
        with pytest.raises(LeaseExpired):
            client.manifest(dataclasses.replace(gone, pages=()))
        with pytest.raises(SourceGone, match="does not offer"):
            acquire(client, going)
        server.shelf.add(going)
        acquire(client, going)


def test_the_same_identity_is_not_offered_twice() -> None:
    material = make_material()
    with worker_server(material) as server, pytest.raises(ConfigurationError, match="already offers"):
        server.shelf.add(make_material(identity=material.identity, rank=1))


def test_files_arrive_and_are_checked() -> None:
    files = {"config.json": b"{}", "tokenizer.json": bytes(range(256)) * 10_000}
    material = make_material(files=files)
    with worker_server(material) as server, client_of(server) as client:
        grant = acquire(client, material)
        assert {file.path: client.file(grant, file) for file in grant.manifest.files} == files
        for wrong in ({"sha256": "0" * 64}, {"nbytes": 3}, {"nbytes": 1}):
            with pytest.raises(ManifestInvalid, match=r"config\.json.*does not match"):
                client.file(grant, dataclasses.replace(grant.manifest.files[0], **wrong))
        with pytest.raises(ManifestInvalid, match="larger than"):
            client.file(grant, dataclasses.replace(grant.manifest.files[0], nbytes=1 << 40))
        with pytest.raises(SourceGone, match="no file"):
            client.file(grant, dataclasses.replace(grant.manifest.files[0], path="../config.json"))


def test_workers_never_share_a_port(caplog: pytest.LogCaptureFixture) -> None:
    with worker_server() as first, worker_server(port=first.port or 0) as second:
        assert first.port != second.port
    assert "is taken" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_port_that_is_taken_is_found_out_without_a_word_of_grpc(
    host: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        WorkerServer("first", (), host) as first,
        WorkerServer("second", (), host, first.port or 0, any_port=True) as second,
    ):
        assert first.port != second.port
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_nobody_at_the_address_is_an_error_that_names_it() -> None:
    with PeerClient("127.0.0.1:1", timeout=0.5) as client, pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1:1"):
        client.readers()
