"""Messages between workers: what is packed comes out again, and what no honest source sends is refused."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.wire import peer_pb2 as pb
from modelexpress.wire.peer import (
    MOST_FILE_BYTES,
    MOST_FILES,
    MOST_REGIONS,
    MOST_TENSORS,
    MOST_TRANSPORTS,
    LeaseGrant,
    ManifestHead,
    MessageInvalid,
    file_blocks,
    grant_from_message,
    grant_to_message,
    readers_from_message,
    readers_to_message,
)
from modelexpress.wire.records import FileSpec, ReaderStatus, TransportOffer

CHUNK = 1000

GRANT = LeaseGrant(
    "lease",
    30.0,
    ManifestHead("module", "nh", CHUNK, 3, 5000, (4096, 0), (FileSpec("config.json", 2, "ab"),)),
    (TransportOffer("tcp", b"\x00\xff"), TransportOffer("local", b"")),
)


def test_a_grant_comes_back_as_it_was() -> None:
    assert grant_from_message(grant_to_message(GRANT)) == GRANT


def _many_files(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.files.extend(pb.FileInfo(path=str(i)) for i in range(MOST_FILES))


def _large_files(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.files.extend([pb.FileInfo(path="a", bytes=MOST_FILE_BYTES)] * 2)


def _many_regions(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.region_bytes.extend([1] * MOST_REGIONS)


def _many_tensors(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.tensor_count = MOST_TENSORS + 1


def _no_chunks(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.chunk_bytes = 0


def _huge_chunks(message: pb.AcquireLeaseResponse) -> None:
    message.manifest.chunk_bytes = (1 << 64) - 1


def _long_lease(message: pb.AcquireLeaseResponse) -> None:
    message.lease_id = "x" * 100_000


def _many_transports(message: pb.AcquireLeaseResponse) -> None:
    message.transports.extend([pb.TransportOffer(name="tcp")] * MOST_TRANSPORTS)


def _long_transport(message: pb.AcquireLeaseResponse) -> None:
    message.transports.add(name="x" * 100_000)


@pytest.mark.parametrize(
    "spoil",
    [
        _many_files,
        _large_files,
        _many_regions,
        _many_tensors,
        _no_chunks,
        _huge_chunks,
        _long_lease,
        _many_transports,
        _long_transport,
    ],
)
def test_a_grant_that_no_honest_source_gives_is_refused(spoil: Callable[[pb.AcquireLeaseResponse], None]) -> None:
    message = grant_to_message(GRANT)
    spoil(message)
    with pytest.raises(MessageInvalid):
        grant_from_message(message)


@given(st.binary(max_size=100))
def test_a_file_comes_back_from_its_blocks(data: bytes) -> None:
    large = data * 30_000
    blocks = [block.data for block in file_blocks(large)]
    assert b"".join(blocks) == large
    assert all(len(block) <= 1 << 20 for block in blocks)


def test_readers_come_back_as_they_were() -> None:
    readers = [ReaderStatus("ab", "reader", "host", 1, 2, 0.5), ReaderStatus("", "", "", 0, 0, 0.0)]
    assert readers_from_message(readers_to_message(readers)) == readers
