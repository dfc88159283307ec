"""Names of hosts, workers and endpoints."""

import pytest

from modelexpress.errors import ConfigurationError
from modelexpress.peer.host import endpoint, host_id, is_loopback, new_worker_id, reachable_host


def test_the_host_id_is_the_same_for_every_process_of_the_host() -> None:
    assert host_id() == host_id() != ""


def test_worker_ids_are_never_the_same() -> None:
    ids = {new_worker_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(worker_id) < 100 for worker_id in ids)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("registry.example", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("registry", "configured", "expected"),
    [
        ("127.0.0.1:8001", "", "127.0.0.1"),
        ("localhost:8001", "", "127.0.0.1"),
        ("[::1]:8001", "", "127.0.0.1"),
        ("127.0.0.1:8001", "worker-7.pods", "worker-7.pods"),
        ("10.0.0.1:8001", "[fd00::7]", "fd00::7"),
    ],
)
def test_the_host_that_others_reach(registry: str, configured: str, expected: str) -> None:
    assert reachable_host(registry, configured) == expected


def test_the_interface_that_leads_to_the_registry_is_the_one_told() -> None:
    # The kernel routes the wildcard address to this machine itself.
    assert reachable_host("0.0.0.0:8001", "") == "127.0.0.1"


@pytest.mark.parametrize("registry", ["no.such.host.invalid:8001", "10.0.0.1:port", "10.0.0.1"])
def test_a_registry_that_leads_nowhere_is_named(registry: str) -> None:
    with pytest.raises(ConfigurationError, match=registry.replace(".", r"\.")):
        reachable_host(registry, "")


@pytest.mark.parametrize(
    ("host", "expected"), [("10.0.0.1", "10.0.0.1:7"), ("fd00::7", "[fd00::7]:7"), ("name", "name:7")]
)
def test_endpoints_are_what_grpc_takes(host: str, expected: str) -> None:
    assert endpoint(host, 7) == expected
