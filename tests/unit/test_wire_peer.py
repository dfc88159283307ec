"""Messages between workers: what is packed comes out again, and what no honest source sends is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.wire import peer_pb2 as pb
from modelexpress.wire.peer import (
    MOST_DIGESTS,
    MOST_DIMENSIONS,
    MOST_FILE_BYTES,
    MOST_FILES,
    MOST_REGIONS,
    MOST_TENSORS,
    MOST_TRANSPORTS,
    PAGE_DIGESTS,
    PAGE_TENSORS,
    LeaseGrant,
    ManifestHead,
    MessageInvalid,
    file_blocks,
    grant_from_message,
    grant_to_message,
    manifest_pages,
    read_pages,
    readers_from_message,
    readers_to_message,
)
from modelexpress.wire.records import FileSpec, ReaderStatus, TensorSpec, TransportOffer

CHUNK = 1000

text = st.text(st.characters(codec="utf-8"), max_size=8)
sizes = st.integers(0, 1 << 40)


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    rank = draw(st.integers(0, 4))
    shape, strides = (tuple(draw(st.lists(sizes, min_size=rank, max_size=rank))) for _ in range(2))
    nbytes = draw(st.integers(0, 5 * CHUNK))
    region = draw(st.integers(0, 9))
    return TensorSpec(draw(text), draw(text), shape, strides, region, draw(sizes), nbytes, draw(st.booleans()))


def head(tensors: int, chunk_bytes: int = CHUNK) -> ManifestHead:
    return ManifestHead("module", "nh", chunk_bytes, tensors, 0, (), ())


def starts(tensors: list[TensorSpec], chunk_bytes: int = CHUNK) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.cumsum([0, *(-(-t.nbytes // chunk_bytes) for t in tensors)], dtype=np.int64)


@given(st.lists(tensor_specs(), max_size=20))
def test_pages_bring_back_every_tensor_and_digest(tensors: list[TensorSpec]) -> None:
    bounds = starts(tensors)
    digests = np.random.default_rng(len(tensors)).integers(0, 1 << 64, bounds[-1], np.uint64)
    pages = list(manifest_pages(tensors, digests, bounds))
    found, found_digests = read_pages(pages, head(len(tensors)))
    assert found == tuple(tensors)
    assert np.array_equal(found_digests, digests)


@pytest.mark.parametrize(
    ("count", "nbytes", "pages"),
    [
        (2 * PAGE_TENSORS + 1, CHUNK, 3),
        (4, CHUNK * PAGE_DIGESTS, 4),
        (4, CHUNK * PAGE_DIGESTS // 2, 2),
        (2, CHUNK * PAGE_DIGESTS * 2, 2),
    ],
    ids=["many tensors", "a page full of digests each", "two to a page", "more digests than a page takes"],
)
def test_pages_stay_small(count: int, nbytes: int, pages: int) -> None:
    tensors = [TensorSpec(f"t{i}", "uint8", (nbytes,), (1,), 0, 0, nbytes) for i in range(count)]
    bounds = starts(tensors)
    made = list(manifest_pages(tensors, np.zeros(bounds[-1], np.uint64), bounds))
    assert len(made) == pages
    found, digests = read_pages(made, head(count))
    assert [t.name for t in found] == [t.name for t in tensors]
    assert len(digests) == bounds[-1]


def test_pages_of_endless_names_stay_under_the_message_limit() -> None:
    tensors = [TensorSpec("\N{GRINNING FACE}" * 20_000 + str(i), "uint8", (1,), (1,), 0, i, 1) for i in range(100)]
    bounds = starts(tensors)
    made = list(manifest_pages(tensors, np.zeros(bounds[-1], np.uint64), bounds))
    assert max(page.ByteSize() for page in made) < 4 << 20
    assert read_pages(made, head(100))[0] == tuple(tensors)


def page(**columns: object) -> pb.ManifestPage:
    """Return a page with one tensor of two chunks, with other columns as given."""
    honest: dict[str, object] = {
        "names": ["a"],
        "dtypes": ["uint8"],
        "dtype_index": [0],
        "ranks": [1],
        "sizes": [2 * CHUNK],
        "strides": [1],
        "regions": [0],
        "offsets": [0],
        "bytes": [2 * CHUNK],
        "digests": [1, 2],
        "transient": [],
    }
    return pb.ManifestPage(**honest | columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "columns",
    [
        {"names": ["a", "b"]},
        {"dtype_index": []},
        {"dtype_index": [1]},
        {"ranks": [2]},
        {"ranks": [4_000_000_000]},
        {"ranks": [MOST_DIMENSIONS + 1], "sizes": [1] * 65, "strides": [1] * 65},
        {"sizes": [1, 1]},
        {"sizes": [1 << 63]},
        {"strides": [(1 << 64) - 1]},
        {"regions": []},
        {"offsets": [0, 0]},
        {"bytes": []},
        {"bytes": [2 * CHUNK + 1]},
        {"bytes": [(1 << 64) - 1]},
        {"digests": [1]},
        {"digests": [1, 2, 3]},
        {"transient": [1]},
    ],
    ids=str,
)
def test_a_page_that_contradicts_itself_is_refused(columns: dict[str, object]) -> None:
    read_pages([page()], head(1))
    with pytest.raises(MessageInvalid):
        read_pages([page(**columns)], head(1))


@pytest.mark.parametrize("pages", [0, 2, 10**9], ids=["none", "one more", "without end"])
def test_other_pages_than_announced_are_refused_at_once(pages: int) -> None:
    with pytest.raises(MessageInvalid, match="tensors"):
        read_pages((page() for _ in range(pages)), head(1))


def test_empty_pages_without_end_are_refused() -> None:
    with pytest.raises(MessageInvalid, match="without tensors"):
        read_pages((pb.ManifestPage() for _ in range(10**9)), head(1))


def test_more_digests_than_any_source_has_are_refused() -> None:
    with pytest.raises(MessageInvalid, match="the limits are"):
        read_pages([page(bytes=[MOST_DIGESTS + 1])], head(1, chunk_bytes=1))


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
