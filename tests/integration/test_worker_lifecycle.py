"""The life of a worker: what it opens, that it shares with nobody, and that nothing of it is left."""

import gc
import os
import socket
import threading
from collections import Counter

import pytest

from modelexpress.errors import ConfigurationError, IdentityError, PeerUnreachable, TransportError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient, PublicationState, Worker
from modelexpress.peer.server import WorkerServer
from modelexpress.transport import available
from tests.support.materials import (
    SETTINGS,
    acquire,
    client_of,
    make_material,
    new_identity,
    open_transport,
    read_all,
    worker_server,
)
from tests.support.waiting import wait_until


def descriptors() -> Counter[str]:
    """Return what this process has open, by kind; numbers within pipes and sockets are left out."""
    kinds: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return kinds


def serve_and_read() -> None:
    """Open everything that a worker can open, use it, and close it."""
    material = make_material(files={"config.json": b"{}"})
    with worker_server(material) as server, client_of(server) as client:
        grant = acquire(client, material)
        client.manifest(grant)
        for name in ("local", "tcp"):
            with open_transport(grant, name).reader as reader:
                read_all(reader, material)


def test_a_stopped_server_leaves_nothing_behind() -> None:
    serve_and_read()  # what gRPC keeps for the whole process is there after the first one
    gc.collect()
    before, running = descriptors(), set(threading.enumerate())
    serve_and_read()
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= running, 5)
    wait_until(lambda: not descriptors() - before, 5)


def test_a_stopped_server_says_so() -> None:
    material = make_material()
    with worker_server(material) as server, client_of(server) as client:
        port = server.port or 0
        grant = acquire(client, material)
        opened = open_transport(grant, "tcp")
        server.close()
        assert server.port is None
        server.close()
        with opened.reader, pytest.raises(TransportError):
            read_all(opened.reader, material)
        for name in ("local", "tcp"):
            with pytest.raises(TransportError):
                open_transport(grant, name)
        with pytest.raises(PeerUnreachable):
            client.readers()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_an_address_that_is_not_here_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        WorkerServer("worker", available(SETTINGS).transports, "192.0.2.1")


@pytest.mark.parametrize(("device", "offset"), [(0, 0), (3, 3)])
def test_each_device_has_a_port_of_its_own(registry: str, device: int, offset: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = taken.getsockname()[1]
    settings = SETTINGS.model_copy(update={"worker_grpc_port": base})
    with Worker(registry, device=device, settings=settings) as worker:
        assert worker.port == base + offset


def test_a_worker_serves_several_materials_until_it_is_closed(registry: str) -> None:
    with Worker(registry, settings=SETTINGS) as worker:
        first, second = (worker.publish(make_material(seed=seed)) for seed in (1, 2))
        assert first.wait_ready(10)
        assert second.wait_ready(10)
        assert first.endpoint == second.endpoint == f"127.0.0.1:{worker.port}"
        first.close()
        assert (first.state, second.state) == (PublicationState.CLOSED, PublicationState.READY)
        with PeerClient(second.endpoint) as client:
            client.acquire(second.source_id, worker.worker_id, "reader", "host")
            assert [reader.source_id for reader in second.readers] == [second.source_id]
    assert second.state is PublicationState.CLOSED
    assert worker.port is None
    worker.close()
    with pytest.raises(ConfigurationError, match="closed"):
        worker.publish(make_material())


def test_closing_a_publication_twice_leaves_its_successor(registry: str) -> None:
    identity = new_identity()
    with Worker(registry, settings=SETTINGS) as worker:
        old = worker.publish(make_material(identity=identity))
        with pytest.raises(ConfigurationError, match="already offers"):
            worker.publish(make_material(identity=identity))
        old.close()
        new = worker.publish(make_material(identity=identity))
        old.close()
        with PeerClient(new.endpoint) as client:
            client.acquire(identity.source_id, worker.worker_id, "reader", "host")


def test_an_identity_that_cannot_travel_is_refused_at_once(registry: str) -> None:
    material = make_material(identity=SourceIdentity(model_name="\ud800"))
    with Worker(registry, settings=SETTINGS) as worker, pytest.raises(IdentityError):
        worker.publish(material)
