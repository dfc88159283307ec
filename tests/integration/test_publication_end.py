"""However a source ends, the registry stops listing it: at once where the process can still say so."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modelexpress.client import Client
from modelexpress.errors import SourceGone
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient
from modelexpress.wire.records import SourceStatus
from tests.support.materials import new_identity
from tests.support.publisher import Publisher
from tests.support.registries import RegistryProcess
from tests.support.waiting import wait_until


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def client(registry: str) -> Iterator[Client]:
    with Client(registry) as client:
        yield client


def listed(client: Client, identity: SourceIdentity) -> bool:
    return bool(client.list_sources(identity, status=SourceStatus.READY))


@pytest.mark.parametrize(("how", "status"), [("return", 0), ("exit", 3)])
def test_a_process_that_ends_withdraws(
    registry: str, client: Client, identity: SourceIdentity, how: str, status: int
) -> None:
    with Publisher(registry, identity) as publisher:
        assert listed(client, identity)
        assert publisher.end(how) == status
        assert not listed(client, identity)


@pytest.mark.parametrize(
    ("handler", "status"), [([], -signal.SIGTERM), (["--handler", "exit"], 5)], ids=["default", "a handler that exits"]
)
def test_a_process_that_is_terminated_withdraws_and_ends_as_it_would_have(
    registry: str, client: Client, identity: SourceIdentity, handler: list[str], status: int
) -> None:
    with Publisher(registry, identity, *handler) as publisher:
        assert publisher.signal(signal.SIGTERM) == status
        assert not listed(client, identity)
        assert publisher.line() == ("handled" if handler else "")


def test_a_handler_that_goes_on_is_called_after_the_farewell(
    registry: str, client: Client, identity: SourceIdentity
) -> None:
    with Publisher(registry, identity, "--handler", "return") as publisher:
        publisher.process.send_signal(signal.SIGTERM)
        assert publisher.line() == "handled"
        assert not listed(client, identity)
        assert publisher.end("exit") == 3


def test_a_process_that_ignores_sigterm_stays_a_source(registry: str, client: Client, identity: SourceIdentity) -> None:
    with Publisher(registry, identity, "--handler", "ignore") as publisher:
        publisher.process.send_signal(signal.SIGTERM)
        publisher.tell("close")
        assert publisher.line() == "closing", "it is still there to do what it is told"
        assert publisher.line() == "closed"
        assert publisher.end("") == 0


def test_sigterm_in_the_middle_of_closing_still_withdraws(identity: SourceIdentity) -> None:
    with (
        RegistryProcess() as registry,
        Publisher(registry.address, identity) as publisher,
        Client(registry.address) as client,
    ):
        registry.process.send_signal(signal.SIGSTOP)  # so that closing takes as long as this test wants
        publisher.tell("close")
        assert publisher.line() == "closing"
        wait_until(lambda: psutil.Process(publisher.process.pid).status() == psutil.STATUS_SLEEPING)
        publisher.process.send_signal(signal.SIGTERM)
        registry.process.send_signal(signal.SIGCONT)
        assert publisher.process.wait(30) == -signal.SIGTERM
        assert not listed(client, identity)


def test_a_forked_child_does_not_withdraw_what_its_parent_publishes(
    registry: str, client: Client, identity: SourceIdentity
) -> None:
    with Publisher(registry, identity, "--heartbeat", "1000") as publisher:
        publisher.tell("fork")
        assert publisher.line() == "0"
        assert publisher.line() == str(-signal.SIGTERM)
        assert listed(client, identity)
        with PeerClient(publisher.endpoint) as peer:
            peer.acquire(identity.source_id, publisher.worker_id, "reader", "host")
        assert publisher.end("") == 0
        assert not listed(client, identity)


def test_a_silent_process_is_no_longer_listed_after_the_timeout(identity: SourceIdentity) -> None:
    impatient = ("--heartbeat-timeout", "0.5", "--reaper-interval", "0.1")
    with (
        RegistryProcess("memory", "127.0.0.1:0", *impatient) as registry,
        Publisher(registry.address, identity, "--heartbeat", "0.1") as publisher,
        Client(registry.address) as client,
    ):
        assert listed(client, identity)
        publisher.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not listed(client, identity), 10)
        publisher.process.send_signal(signal.SIGCONT)
        wait_until(lambda: listed(client, identity), 10)
        publisher.signal(signal.SIGKILL)
        wait_until(lambda: not listed(client, identity), 10)


def test_a_terminated_process_takes_its_socket_away(registry: str, identity: SourceIdentity) -> None:
    with Publisher(registry, identity) as publisher:
        with PeerClient(publisher.endpoint) as peer:
            grant = peer.acquire(identity.source_id, publisher.worker_id, "reader", "host")
        (descriptor,) = (offer.descriptor for offer in grant.transports if offer.name == "local")
        path = Path(json.loads(descriptor)["path"])
        assert path.is_socket()
        publisher.signal(signal.SIGTERM)
        assert not path.exists()


def test_a_restarted_worker_on_the_same_port_refuses_the_old_record(registry: str, identity: SourceIdentity) -> None:
    with Publisher(registry, identity) as old:
        port = old.endpoint.rpartition(":")[2]
        old.signal(signal.SIGKILL)
        with Publisher(registry, identity, "--port", port) as new, PeerClient(new.endpoint) as peer:
            assert new.endpoint == old.endpoint
            with pytest.raises(SourceGone, match=f"worker {new.worker_id} answers here, not {old.worker_id}"):
                peer.acquire(identity.source_id, old.worker_id, "reader", "host")
            peer.acquire(identity.source_id, new.worker_id, "reader", "host")
