"""The relay of one rank: what it offers of a file, and over what. No registry is needed for that."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import modelexpress as mx
from modelexpress.engines.trtllm.finding import Published
from modelexpress.engines.trtllm.identity import header_name
from modelexpress.engines.trtllm.partial_folder import PartialFolder
from modelexpress.engines.trtllm.rank_memory import RankFile, RankMemory
from modelexpress.engines.trtllm.rank_relay import RankRelay
from modelexpress.engines.trtllm.rank_room import RankRoom
from modelexpress.engines.trtllm.relays import Relays
from modelexpress.errors import PeerLost
from modelexpress.peer import PeerClient
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.plan import make_plan
from modelexpress.transport import Run, available, open_first
from modelexpress.transport.tcp import TcpTransport
from modelexpress.wire.peer import LeaseGrant
from tests.support.materials import new_identity
from tests.support.trtllm_checkpoints import big_rank, config_of, write_checkpoint

CHUNK = 1 << 20
CHUNKS = 4
DAMAGED = 2
"""The chunk of the kept file that is not what the source has."""
NOWHERE = "127.0.0.1:9"
SETTINGS = mx.Settings(worker_grpc_port=0)
IDENTITY = new_identity()


@pytest.fixture
def file(tmp_path: Path) -> RankFile:
    """The file of a source, each tensor of which is a chunk."""
    folder = write_checkpoint(tmp_path / "source", config_of(1), lambda rank: big_rank(rank, CHUNKS))
    return RankFile.open(folder / "rank0.safetensors")


@pytest.fixture
def source(file: RankFile) -> RankMemory:
    files = {header_name(0): file.header[8:], "config.json": (file.path.parent / "config.json").read_bytes()}
    return file.read(files, CHUNK, lambda _: None)


@pytest.fixture
def relay(file: RankFile, source: RankMemory, tmp_path: Path) -> Iterator[RankRelay]:
    """The relay of a rank that an interrupted load left in part, opened as a load does."""
    content = bytearray(file.path.read_bytes())
    start = len(file.header) + DAMAGED * CHUNK
    content[start : start + CHUNK] = bytes(CHUNK)
    with PartialFolder(tmp_path / "out", "checkpoint") as folder, mx.Worker(NOWHERE, settings=SETTINGS) as worker:
        (folder.path / "rank0.safetensors").write_bytes(content)
        ledger = Ledger()
        room = RankRoom(0, folder, ledger)
        relay = RankRelay(worker, IDENTITY, 0, room)
        (places,) = room.open(source.manifest, lambda spec: source.files[spec.path]).values()
        plan = make_plan(source.manifest, places, ledger, CHUNK)
        relay.open(source.manifest, source.files, [batch.pieces for batch in plan.batches])
        yield relay
        relay.close()


def lease(relay: RankRelay) -> LeaseGrant:
    with PeerClient(relay.member.endpoint) as client:
        return client.acquire(IDENTITY.source_id, relay.member.worker_id, "reader", "host")


def test_what_an_interrupted_load_left_is_passed_on_and_what_is_wrong_is_not(relay: RankRelay) -> None:
    assert relay.chunks == DAMAGED
    assert lease(relay).verified_chunks == DAMAGED
    relay.verified(np.array([DAMAGED]))
    assert relay.chunks == CHUNKS
    assert relay.readers() == {"reader": 0}


def test_readers_get_bytes_and_no_descriptor_of_the_file(relay: RankRelay, file: RankFile) -> None:
    grant = lease(relay)
    offers = {offer.name: offer for offer in grant.transports}
    assert "ordinary memory" in offers["local"].refused
    received = bytearray(CHUNK)
    address = np.frombuffer(received, np.uint8).ctypes.data
    with PeerClient(relay.member.endpoint) as client:
        offset = client.manifest(grant).tensor(0).offset
    tcp = [each for each in available(SETTINGS).transports if isinstance(each, TcpTransport)]
    with open_first(tcp, grant.transports, grant.lease_id).reader as reader:
        reader.read([Run(0, offset, address, CHUNK)]).wait(10)
    assert received == file.path.read_bytes()[len(file.header) :][:CHUNK]


def test_a_relay_that_is_closed_serves_nobody(relay: RankRelay) -> None:
    grant = lease(relay)
    relay.close()
    relay.close()
    tcp = [each for each in available(SETTINGS).transports if isinstance(each, TcpTransport)]
    with pytest.raises(PeerLost):
        open_first(tcp, grant.transports, grant.lease_id)


def test_without_a_registry_nothing_is_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Relays(NOWHERE, "model", Published(IDENTITY.source_id, 1), SETTINGS) as relays,
        PartialFolder(tmp_path / "other", "checkpoint") as folder,
    ):
        assert relays.add(0, RankRoom(0, folder, Ledger())) is None
        relays.complete()
    assert "nothing is passed on to other targets" in caplog.text
