"""Pages of a manifest: what is packed comes out again, and what no honest source sends is refused."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.wire.manifest_pages import (
    MOST_DIGESTS,
    MOST_DIMENSIONS,
    PAGE_DIGESTS,
    PAGE_TENSORS,
    Digests,
    manifest_pages,
    read_pages,
)
from modelexpress.wire.peer import ManifestHead, MessageInvalid
from modelexpress.wire.peer_pb2 import ManifestPage
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Tensors

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


def pages_of(tensors: Sequence[TensorSpec], digests: Digests | None = None) -> tuple[ManifestPage, ...]:
    starts = np.cumsum([0, *(-(-tensor.nbytes // CHUNK) for tensor in tensors)], dtype=np.int64)
    return manifest_pages(Tensors.of(tensors), np.zeros(starts[-1], np.uint64) if digests is None else digests, starts)


@given(st.lists(tensor_specs(), max_size=20))
def test_pages_bring_back_every_tensor_and_digest(tensors: list[TensorSpec]) -> None:
    chunks = sum(-(-tensor.nbytes // CHUNK) for tensor in tensors)
    digests = np.random.default_rng(len(tensors)).integers(0, 1 << 64, chunks, np.uint64)
    found, found_digests = read_pages(pages_of(tensors, digests), head(len(tensors)))
    assert list(found) == tensors
    assert np.array_equal(found_digests, digests)


def test_layouts_are_the_same_ones_on_all_pages() -> None:
    kinds = ("uint8", "int8", "bool")
    tensors = [TensorSpec(f"t{i}", kinds[i * i % 3], (4,), (1,), 0, i, 4) for i in range(PAGE_TENSORS + 5)]
    pages = pages_of(tensors)
    assert len(pages) == 2
    found, _ = read_pages(pages, head(len(tensors)))
    assert sorted(layout.dtype for layout in found.layouts) == ["int8", "uint8"]
    assert found == Tensors.of(tensors)


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
    made = pages_of(tensors)
    assert len(made) == pages
    found, digests = read_pages(made, head(count))
    assert found.names == tuple(tensor.name for tensor in tensors)
    assert len(digests) == count * -(-nbytes // CHUNK)


def test_pages_of_endless_names_stay_under_the_message_limit() -> None:
    tensors = [TensorSpec("\N{GRINNING FACE}" * 20_000 + str(i), "uint8", (1,), (1,), 0, i, 1) for i in range(100)]
    made = pages_of(tensors)
    assert max(page.ByteSize() for page in made) < 4 << 20
    assert read_pages(made, head(100))[0] == Tensors.of(tensors)


def narrow(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def wide(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


def page(**columns: object) -> ManifestPage:
    """Return a page with one tensor of two chunks, with other columns as given."""
    honest: dict[str, object] = {
        "names": ["a"],
        "layouts": narrow(0),
        "regions": narrow(0),
        "offsets": wide(0),
        "digests": wide(1, 2),
        "transient": b"",
        "dtypes": ["uint8"],
        "bytes": [2 * CHUNK],
        "ranks": [1],
        "sizes": [2 * CHUNK],
        "strides": [1],
    }
    return ManifestPage(**honest | columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "columns",
    [
        {"names": ["a", "b"]},
        {"layouts": b""},
        {"layouts": narrow(0)[:3]},
        {"layouts": narrow(1)},
        {"layouts": narrow((1 << 32) - 1)},
        {"dtypes": [], "bytes": [], "ranks": [], "sizes": [], "strides": []},
        {"dtypes": []},
        {"dtypes": ["uint8"] * 2},
        {"dtypes": ["uint8"] * 2, "bytes": [1] * 2, "ranks": [1] * 2, "sizes": [1] * 2, "strides": [1] * 2},
        {"ranks": [2]},
        {"ranks": [4_000_000_000]},
        {"ranks": [MOST_DIMENSIONS + 1], "sizes": [1] * 65, "strides": [1] * 65},
        {"sizes": [1, 1]},
        {"sizes": [1 << 63]},
        {"strides": [(1 << 64) - 1]},
        {"regions": b""},
        {"regions": narrow(0, 0)},
        {"regions": narrow(0)[:3]},
        {"offsets": wide(0, 0)},
        {"offsets": wide(0)[:7]},
        {"offsets": wide(1 << 63)},
        {"offsets": wide((1 << 64) - 1)},
        {"bytes": []},
        {"bytes": [2 * CHUNK + 1]},
        {"bytes": [(1 << 64) - 1]},
        {"digests": wide(1)},
        {"digests": wide(1, 2, 3)},
        {"digests": wide(1, 2)[:15]},
        {"transient": narrow(1)},
        {"transient": narrow(0)[:3]},
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
        read_pages((ManifestPage() for _ in range(10**9)), head(1))


@pytest.mark.parametrize(
    "more",
    [
        lambda: page(bytes=[MOST_DIGESTS + 1]),
        lambda: page(names=["a"] * 1000, layouts=narrow(*[0] * 1000), bytes=[(1 << 56) - 1]),
    ],
    ids=["of one tensor", "of all together, beyond 64 bits"],
)
def test_more_digests_than_any_source_has_are_refused(more: Callable[[], ManifestPage]) -> None:
    with pytest.raises(MessageInvalid, match="the limits are"):
        read_pages([more()], head(1000, chunk_bytes=1))
