"""What `nixl` says of the machine, what it refuses, and that it leaves the process as it is."""

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import RegionWithdrawn, TransportError, TransportUnavailable
from modelexpress.memory import HostArena, Region
from modelexpress.transport import NixlTransport, Run
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


@installed
def test_what_is_said_to_readers_can_be_encrypted() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    arena, target = HostArena(5), HostArena(5)
    arena.region.view()[:] = b"bytes"
    with NixlTransport(server_tls=server, client_tls=client) as transport, NixlTransport() as plain:
        export = transport.export([arena.region])
        export.grant(TOKEN)
        with transport.open(export.descriptor, TOKEN) as reader:
            reader.read([Run(0, 0, target.region.address, 5)]).wait(5)
            export.close()
            with pytest.raises(RegionWithdrawn):
                reader.read([Run(0, 0, target.region.address, 5)]).wait(5)
        with pytest.raises(TransportUnavailable, match="client_tls"):
            plain.open(export.descriptor, TOKEN)
    assert bytes(target.region.view()) == b"bytes"


def test_the_memory_of_a_gpu_is_refused() -> None:
    with NixlTransport() as transport, pytest.raises(TransportUnavailable, match="GPU"):
        transport.export([Region(1 << 20, 5, device=0)])


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
