"""What `nixl` says of the machine, what it refuses, and that it leaves the process as it is."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import TransportError, TransportUnavailable
from modelexpress.transport.nixl import NixlTransport
from modelexpress.transport.nixl_agent import Agent
from modelexpress.transport.nixl_cards import Card, rdma_cards
from modelexpress.transport.nixl_descriptor import Handover, receive_handover
from modelexpress.transport.nixl_library import load, missing
from tests.support.transport_source import TOKEN

installed = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def port(folder: Path, state: str, rate: str) -> None:
    folder.mkdir(parents=True)
    (folder / "state").write_text(state)
    (folder / "rate").write_text(rate)


def test_cards_are_listed_fastest_first(tmp_path: Path) -> None:
    assert rdma_cards(tmp_path / "none") == ()
    port(tmp_path / "mlx5_0/ports/1", "4: ACTIVE\n", "100 Gb/sec (4X EDR)\n")
    port(tmp_path / "mlx5_1/ports/1", "4: ACTIVE\n", "400 Gb/sec (4X NDR)\n")
    port(tmp_path / "mlx5_2/ports/1", "1: DOWN\n", "400 Gb/sec (4X NDR)\n")
    port(tmp_path / "odd/ports/1", "4: ACTIVE\n", "\n")
    for name, driver in (("mlx5_0", "mlx5_core"), ("mlx5_1", "efa")):
        (tmp_path / name / "device").mkdir()
        (tmp_path / name / "device/driver").symlink_to(driver)
    assert rdma_cards(tmp_path) == (Card("mlx5_1", "efa", 50e9), Card("mlx5_0", "mlx5_core", 12.5e9))


@pytest.mark.skipif(bool(rdma_cards()), reason="this host has an RDMA network card")
def test_without_a_card_it_is_skipped_with_the_reason() -> None:
    assert "RDMA" in str(NixlTransport().unavailable())


@installed
def test_a_wrong_environment_is_named_and_nothing_is_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    Agent().native.end()
    assert dict(os.environ) == before
    monkeypatch.setenv("UCX_PROTO_EMULATION_ENABLE", "y")
    with pytest.raises(TransportUnavailable, match="UCX_PROTO_EMULATION_ENABLE"):
        Agent()


@installed
def test_a_process_can_ask_for_settings_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "^tcp")
    with pytest.raises(TransportUnavailable, match="must contain tcp"):
        Agent()


LOGS = """
import logging, sys
handler = logging.FileHandler(sys.argv[1], mode="w")
logging.basicConfig(level=logging.INFO, handlers=[handler])
from modelexpress.transport.nixl_library import load
load()
logging.info("still here")
assert logging.raiseExceptions
"""


@installed
def test_importing_it_leaves_the_logs_of_the_process_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", LOGS, str(log)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "still here" in log.read_text()


@installed
def test_errors_of_the_library_have_one_of_ours() -> None:
    library = load()
    names = {error.__name__ for error in library.errors}
    assert {"nixlRemoteDisconnectError", "nixlBackendError", "nixlNotFoundError"} <= names
    for error in library.errors:
        with pytest.raises(TransportError, match="do it"), library.translated("do it"):
            raise error("why")


def receive(data: bytes) -> Handover:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        return receive_handover(ours, time.monotonic() + 5)


def test_what_is_handed_over_arrives() -> None:
    handover = Handover(agent="mx", places=((2**63, 5), (0, 0)), metadata=b"AAEC")
    assert handover.metadata == b"\x00\x01\x02"
    assert receive(handover.encode()) == handover


@given(st.integers(0, 10_000), st.integers(1, 255), st.integers(0, 40))
def test_a_damaged_handover_is_refused(place: int, change: int, cut: int) -> None:
    whole = bytearray(Handover(agent="mx", places=((1, 2),), metadata=b"AAEC").encode())
    whole[place % len(whole)] ^= change
    with pytest.raises(TransportError):
        receive(bytes(whole[: len(whole) - cut]))


def test_a_descriptor_of_another_host_is_refused_without_a_card() -> None:
    if rdma_cards():
        pytest.skip("this host has an RDMA network card")
    where = b'"host":"192.0.2.1","port":1,"tls":false,"boot_id":"x"'
    descriptor = b'{"version":1,%s,"export":"%s","region_bytes":[1]}' % (where, b"00" * 16)
    with NixlTransport() as transport:
        assert transport.limit(descriptor) is None
        with pytest.raises(TransportUnavailable, match="another host"):
            transport.open(descriptor, TOKEN)
