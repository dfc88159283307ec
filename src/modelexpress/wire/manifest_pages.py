"""A manifest's tensors and digests as pages: columns that cross the wire as they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from modelexpress.wire.peer import BEYOND_EVERYTHING, ManifestHead, MessageInvalid
from modelexpress.wire.peer_pb2 import ManifestPage
from modelexpress.wire.tensors import Flags, Integers, Layout, Tensors

PAGE_TENSORS = 1 << 14
"""Tensors of one page of a manifest: with long names some 1.5 MB, below the message limit of 4 MiB."""

PAGE_DIGESTS = 1 << 17
"""Digests of one page at most: 1 MiB of them."""

PAGE_CHARACTERS = 1 << 19
"""Characters of the names of one page at most; in UTF-8 a character has four bytes at most."""

MOST_DIMENSIONS = 64
MOST_DIGESTS = 1 << 25
MOST_MANIFEST_BYTES = 1 << 29
"""What a source may say of itself, so that one that lies cannot fill its readers' memory. 2^25 digests are those of
2 TiB in the smallest chunks."""

Digests = npt.NDArray[np.uint64]

_NARROW = np.dtype("<u4")
_WIDE = np.dtype("<u8")


def manifest_pages(tensors: Tensors, digests: Digests, chunk_starts: Integers) -> tuple[ManifestPage, ...]:
    """Return a manifest's tensors in pages.

    Args:
        tensors: All tensors.
        digests: The digests of all chunks, in order.
        chunk_starts: For each tensor the index of its first digest, and the end of the last.
    """
    text_starts = np.cumsum([0, *map(len, tensors.names)])
    pages, start = [], 0
    while start < len(tensors):
        ends = (_reach(chunk_starts, start, PAGE_DIGESTS), _reach(text_starts, start, PAGE_CHARACTERS))
        end = min(start + PAGE_TENSORS, len(tensors), *ends)
        pages.append(_page(tensors, slice(start, end), digests[chunk_starts[start] : chunk_starts[end]]))
        start = end
    return tuple(pages)


def _reach(starts: Integers, first: int, most: int) -> int:
    """Return the end of the tensors from `first` on that have at most `most` of something together; at least one."""
    return max(int(np.searchsorted(starts, starts[first] + most, side="right")) - 1, first + 1)


def _page(tensors: Tensors, part: slice, digests: Digests) -> ManifestPage:
    used, numbers = np.unique(tensors.layout_index[part], return_inverse=True)
    layouts = [tensors.layouts[number] for number in used.tolist()]
    return ManifestPage(
        names=tensors.names[part],
        layouts=numbers.astype(_NARROW).tobytes(),
        regions=tensors.regions[part].astype(_NARROW).tobytes(),
        offsets=tensors.offsets[part].astype(_WIDE).tobytes(),
        digests=digests.astype(_WIDE).tobytes(),
        transient=np.flatnonzero(~tensors.persistent[part]).astype(_NARROW).tobytes(),
        dtypes=[layout.dtype for layout in layouts],
        bytes=[layout.nbytes for layout in layouts],
        ranks=[len(layout.shape) for layout in layouts],
        sizes=list(chain.from_iterable(layout.shape for layout in layouts)),
        strides=list(chain.from_iterable(layout.strides for layout in layouts)),
    )


def read_pages(pages: Iterable[ManifestPage], head: ManifestHead) -> tuple[Tensors, Digests]:
    """Return the tensors and the digests of a manifest's pages, taking no more of them than the head announced.

    Raises:
        MessageInvalid: The columns of a page do not fit together, or the pages not to the head.
    """
    names: list[str] = []
    numbers: dict[Layout, int] = {}
    columns = [_Columns.none()]
    count = nbytes = 0
    for page in pages:
        nbytes += page.ByteSize()
        if not page.names:
            raise MessageInvalid("a manifest page without tensors")
        _check_limits(head, len(names) + len(page.names), count, nbytes)
        names += page.names
        layouts = _layouts(page)
        chosen = _chosen(page, layouts)
        chunks = _chunks(layouts, chosen, head.chunk_bytes)
        count += chunks
        _check_limits(head, len(names), count, nbytes)
        if chunks * _WIDE.itemsize != len(page.digests):
            raise MessageInvalid(f"a manifest page has digests of {len(page.digests)} bytes for {chunks} chunks")
        shared = np.array([numbers.setdefault(layout, len(numbers)) for layout in layouts], np.int64)
        columns.append(_Columns.read(page, shared[chosen]))
    if len(names) != head.tensor_count:
        raise MessageInvalid(f"{head.tensor_count} tensors were announced, {len(names)} came")
    return _joined(names, tuple(numbers), columns)


def _check_limits(head: ManifestHead, tensors: int, chunks: int, nbytes: int) -> None:
    if tensors > head.tensor_count or chunks > MOST_DIGESTS or nbytes > MOST_MANIFEST_BYTES:
        raise MessageInvalid(
            f"{tensors} tensors in {chunks} chunks, described in {nbytes} bytes; the limits are "
            f"{head.tensor_count}, {MOST_DIGESTS} and {MOST_MANIFEST_BYTES}"
        )


@dataclass(frozen=True)
class _Columns:
    """The columns of a page that need no interpretation but their limits, and the layouts by their final numbers."""

    layout_index: Integers
    regions: Integers
    offsets: Integers
    persistent: Flags
    digests: Digests

    @classmethod
    def none(cls) -> "_Columns":
        """Return columns of no tensors: where there are no pages, they give the types."""
        integers = np.empty(0, np.int64)
        return cls(integers, integers, integers, np.empty(0, np.bool_), np.empty(0, np.uint64))

    @classmethod
    def read(cls, page: ManifestPage, layout_index: Integers) -> "_Columns":
        count = len(page.names)
        offsets = _column(page.offsets, _WIDE, count)
        if int(offsets.max()) >= BEYOND_EVERYTHING:
            raise MessageInvalid("a tensor begins where no memory ends")
        transient = _column(page.transient, _NARROW)
        if int(transient.max(initial=0)) >= count:
            raise MessageInvalid("a manifest page says of a tensor that it does not list that it is transient")
        persistent = np.ones(count, np.bool_)
        persistent[transient] = False
        regions = _column(page.regions, _NARROW, count).astype(np.int64)
        digests = np.frombuffer(page.digests, _WIDE).astype(np.uint64)
        return cls(layout_index, regions, offsets.astype(np.int64), persistent, digests)


def _joined(names: list[str], layouts: tuple[Layout, ...], parts: list[_Columns]) -> tuple[Tensors, Digests]:
    tensors = Tensors(
        tuple(names),
        layouts,
        np.concatenate([part.layout_index for part in parts]),
        np.concatenate([part.regions for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.persistent for part in parts]),
    )
    return tensors, np.concatenate([part.digests for part in parts])


def _column(content: bytes, width: "np.dtype[np.unsignedinteger]", count: int | None = None) -> npt.NDArray[np.uint64]:
    """Return a column of integers, of which there must be `count`, if that is given."""
    if len(content) % width.itemsize or count not in (None, len(content) // width.itemsize):
        raise MessageInvalid("the columns of a manifest page have different lengths")
    return np.frombuffer(content, width)


def _layouts(page: ManifestPage) -> list[Layout]:
    """Return the layouts of a page."""
    if not len(page.ranks) == len(page.dtypes) == len(page.bytes) <= len(page.names):
        raise MessageInvalid(
            "a manifest page has layouts in columns of different lengths, or more of them than tensors"
        )
    ranks = list(page.ranks)
    if max(ranks, default=0) > MOST_DIMENSIONS:
        raise MessageInvalid(f"a tensor of {max(ranks)} dimensions; the limit is {MOST_DIMENSIONS}")
    if not len(page.sizes) == len(page.strides) == sum(ranks):
        raise MessageInvalid("a manifest page has sizes or strides for other ranks than it names")
    if max(chain(page.sizes, page.strides, page.bytes), default=0) >= BEYOND_EVERYTHING:
        raise MessageInvalid("a tensor has a size or a stride that no memory holds")
    sizes, strides = list(page.sizes), list(page.strides)
    bounds = pairwise(accumulate(ranks, initial=0))
    return [
        Layout(dtype, tuple(sizes[start:end]), tuple(strides[start:end]), nbytes)
        for dtype, (start, end), nbytes in zip(page.dtypes, bounds, page.bytes, strict=True)
    ]


def _chosen(page: ManifestPage, layouts: list[Layout]) -> Integers:
    """Return for each tensor the position of its layout on the page."""
    chosen = _column(page.layouts, _NARROW, len(page.names))
    if int(chosen.max()) >= len(layouts):
        raise MessageInvalid("a manifest page names a layout that it does not list")
    return chosen.astype(np.int64)


def _chunks(layouts: list[Layout], chosen: Integers, chunk_bytes: int) -> int:
    """Return the number of chunks of all tensors of a page, in integers that do not overflow."""
    times = np.bincount(chosen, minlength=len(layouts)).tolist()
    return sum(number * -(-layout.nbytes // chunk_bytes) for number, layout in zip(times, layouts, strict=True))
