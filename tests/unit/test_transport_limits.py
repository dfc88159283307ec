"""Limits of links: what this host measures quickly, and what its routing table says."""

import struct
import time
from socket import inet_aton

import pytest

from modelexpress.transport.limits import _interface, copy_limit, link_limit

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t0000000A\t00000000\t0001\t0\t0\t100\t000000FF\t0\t0\t0
ib0\t0000010A\t00000000\t0001\t0\t0\t100\t0000FFFF\t0\t0\t0
"""


@pytest.mark.parametrize(("address", "name"), [("8.8.8.8", "eth0"), ("10.2.3.4", "eth1"), ("10.1.2.3", "ib0")])
def test_the_most_specific_route_counts(address: str, name: str) -> None:
    assert _interface(struct.unpack("=I", inet_aton(address))[0], ROUTES) == name


def test_without_a_route_there_is_no_interface() -> None:
    assert _interface(1, ROUTES.splitlines()[0]) is None


def test_the_own_host_is_measured() -> None:
    limit = link_limit("127.0.0.1", 9)
    assert limit is not None
    assert limit.bytes_per_second > 1e6


def test_unknown_hosts_have_no_limit() -> None:
    for host in ("host.invalid", "x" * 70 + ".invalid"):
        assert link_limit(host, 9) is None


def test_copying_is_measured() -> None:
    started = time.monotonic()
    assert copy_limit().bytes_per_second > 1e6
    assert time.monotonic() - started < 10
