"""Conversions between the messages of `modelexpress.peer.v1` and our own records."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from modelexpress.wire import peer_pb2 as pb
from modelexpress.wire.records import FileSpec, ReaderStatus, TensorSpec, TransportOffer

PAGE_TENSORS = 4096
"""Tensors of one page of a manifest: with long names some 600 KB, far below the message limit of 4 MiB."""

PAGE_DIGESTS = 1 << 17
"""Digests of one page at most: 1 MiB of them."""

PAGE_CHARACTERS = 1 << 19
"""Characters of the names of one page at most; in UTF-8 a character has four bytes at most."""

BLOCK_BYTES = 1 << 20
"""A file travels in blocks of so many bytes."""


MOST_TENSORS = 1 << 20
MOST_DIMENSIONS = 64
MOST_DIGESTS = 1 << 25
MOST_MANIFEST_BYTES = 1 << 29
MOST_REGIONS = 1 << 16
MOST_TRANSPORTS = 16
MOST_FILES = 1000
MOST_FILE_BYTES = 1 << 30
"""What a source may say of itself, so that one that lies cannot fill its readers' memory. The files are those of one
material together; 2^25 digests are those of 2 TiB in the smallest chunks."""

_LONGEST_NAME = 256
_BEYOND_EVERYTHING = 1 << 56
"""Sizes, strides and chunks below this stay within 64 bits when they are multiplied by the size of an element."""


class MessageInvalid(ValueError):
    """A message contradicts itself."""


@dataclass(frozen=True)
class ManifestHead:
    """A manifest without its tensors: sizes in bytes, `scope` and `digest_algorithm` by name."""

    scope: str
    digest_algorithm: str
    chunk_bytes: int
    tensor_count: int
    total_bytes: int
    region_bytes: tuple[int, ...]
    files: tuple[FileSpec, ...]


@dataclass(frozen=True)
class LeaseGrant:
    """What a source answers to a reader it lets in."""

    lease_id: str
    ttl_seconds: float
    manifest: ManifestHead
    transports: tuple[TransportOffer, ...]


def grant_to_message(grant: LeaseGrant) -> pb.AcquireLeaseResponse:
    """Return the answer to AcquireLease."""
    head = grant.manifest
    return pb.AcquireLeaseResponse(
        lease_id=grant.lease_id,
        ttl_seconds=grant.ttl_seconds,
        manifest=pb.ManifestHeader(
            scope=head.scope,
            digest_algorithm=head.digest_algorithm,
            chunk_bytes=head.chunk_bytes,
            tensor_count=head.tensor_count,
            total_bytes=head.total_bytes,
            region_bytes=head.region_bytes,
            files=[pb.FileInfo(path=f.path, bytes=f.nbytes, sha256=f.sha256) for f in head.files],
        ),
        transports=[pb.TransportOffer(name=o.name, descriptor=o.descriptor) for o in grant.transports],
    )


def grant_from_message(message: pb.AcquireLeaseResponse) -> LeaseGrant:
    """Return what a source granted.

    Raises:
        MessageInvalid: It names more than any honest source has.
    """
    head = message.manifest
    _check_head(head)
    if len(message.transports) > MOST_TRANSPORTS:
        raise MessageInvalid(f"{len(message.transports)} transports; the limit is {MOST_TRANSPORTS}")
    if max(len(text) for text in (message.lease_id, *(offer.name for offer in message.transports))) > _LONGEST_NAME:
        raise MessageInvalid(f"the lease or a transport has a name of more than {_LONGEST_NAME} characters")
    return LeaseGrant(
        lease_id=message.lease_id,
        ttl_seconds=message.ttl_seconds,
        manifest=ManifestHead(
            scope=head.scope,
            digest_algorithm=head.digest_algorithm,
            chunk_bytes=head.chunk_bytes,
            tensor_count=head.tensor_count,
            total_bytes=head.total_bytes,
            region_bytes=tuple(head.region_bytes),
            files=tuple(FileSpec(f.path, f.bytes, f.sha256) for f in head.files),
        ),
        transports=tuple(TransportOffer(o.name, o.descriptor) for o in message.transports),
    )


def _check_head(head: pb.ManifestHeader) -> None:
    counts = (
        ("tensors", head.tensor_count, MOST_TENSORS),
        ("regions", len(head.region_bytes), MOST_REGIONS),
        ("files", len(head.files), MOST_FILES),
        ("bytes in files", sum(file.bytes for file in head.files), MOST_FILE_BYTES),
        ("bytes in a chunk", head.chunk_bytes, _BEYOND_EVERYTHING),
    )
    for what, number, most in counts:
        if number > most:
            raise MessageInvalid(f"{number} {what}; the limit is {most}")
    if not head.chunk_bytes:
        raise MessageInvalid("chunks of no bytes")


def manifest_pages(
    tensors: Sequence[TensorSpec], digests: npt.NDArray[np.uint64], chunk_starts: npt.NDArray[np.int64]
) -> Iterator[pb.ManifestPage]:
    """Yield a manifest's tensors in pages.

    Args:
        tensors: All tensors.
        digests: The digests of all chunks, in order.
        chunk_starts: For each tensor the index of its first digest, and the end of the last.
    """
    text_starts = np.cumsum([0, *(len(tensor.name) for tensor in tensors)])
    start = 0
    while start < len(tensors):
        ends = (_reach(chunk_starts, start, PAGE_DIGESTS), _reach(text_starts, start, PAGE_CHARACTERS))
        end = min(start + PAGE_TENSORS, len(tensors), *ends)
        yield _page(tensors[start:end], digests[chunk_starts[start] : chunk_starts[end]])
        start = end


def _reach(starts: npt.NDArray[np.int64], first: int, most: int) -> int:
    """Return the end of the tensors from `first` on that have at most `most` of something together; at least one."""
    return max(int(np.searchsorted(starts, starts[first] + most, side="right")) - 1, first + 1)


def _page(tensors: Sequence[TensorSpec], digests: npt.NDArray[np.uint64]) -> pb.ManifestPage:
    dtypes = {dtype: index for index, dtype in enumerate(dict.fromkeys(t.dtype for t in tensors))}
    return pb.ManifestPage(
        names=[t.name for t in tensors],
        dtypes=list(dtypes),
        dtype_index=[dtypes[t.dtype] for t in tensors],
        ranks=[len(t.shape) for t in tensors],
        sizes=[size for t in tensors for size in t.shape],
        strides=[stride for t in tensors for stride in t.strides],
        regions=[t.region for t in tensors],
        offsets=[t.offset for t in tensors],
        bytes=[t.nbytes for t in tensors],
        digests=digests.tolist(),
        transient=[position for position, t in enumerate(tensors) if not t.persistent],
    )


def read_pages(
    pages: Iterable[pb.ManifestPage], head: ManifestHead
) -> tuple[tuple[TensorSpec, ...], npt.NDArray[np.uint64]]:
    """Return the tensors and the digests of a manifest's pages, taking no more of them than the head announced.

    Raises:
        MessageInvalid: The columns of a page do not fit together, or the pages not to the head.
    """
    tensors: list[TensorSpec] = []
    digests = [np.empty(0, np.uint64)]
    count = nbytes = 0
    for page in pages:
        nbytes += page.ByteSize()
        if not page.names:
            raise MessageInvalid("a manifest page without tensors")
        found = list(_page_tensors(page))
        chunks = sum(-(-tensor.nbytes // head.chunk_bytes) for tensor in found)
        tensors += found
        count += chunks
        if len(tensors) > head.tensor_count or count > MOST_DIGESTS or nbytes > MOST_MANIFEST_BYTES:
            raise MessageInvalid(
                f"{len(tensors)} tensors in {count} chunks, described in {nbytes} bytes; the limits are "
                f"{head.tensor_count}, {MOST_DIGESTS} and {MOST_MANIFEST_BYTES}"
            )
        if chunks != len(page.digests):
            raise MessageInvalid(f"a manifest page has {len(page.digests)} digests for {chunks} chunks")
        digests.append(np.fromiter(page.digests, np.uint64, chunks))
    if len(tensors) != head.tensor_count:
        raise MessageInvalid(f"{head.tensor_count} tensors were announced, {len(tensors)} came")
    return tuple(tensors), np.concatenate(digests)


def _page_tensors(page: pb.ManifestPage) -> Iterator[TensorSpec]:
    columns = (page.dtype_index, page.ranks, page.regions, page.offsets, page.bytes)
    if any(len(column) != len(page.names) for column in columns):
        raise MessageInvalid("the columns of a manifest page have different lengths")
    if max(page.ranks, default=0) > MOST_DIMENSIONS:
        raise MessageInvalid(f"a tensor of {max(page.ranks)} dimensions; the limit is {MOST_DIMENSIONS}")
    if max(chain(page.sizes, page.strides), default=0) >= _BEYOND_EVERYTHING:
        raise MessageInvalid("a tensor has a size or a stride that no memory holds")
    if not len(page.sizes) == len(page.strides) == sum(page.ranks):
        raise MessageInvalid("a manifest page has sizes or strides for other ranks than it names")
    if any(index >= len(page.dtypes) for index in page.dtype_index):
        raise MessageInvalid("a manifest page names a dtype that it does not list")
    if any(position >= len(page.names) for position in page.transient):
        raise MessageInvalid("a manifest page says of a tensor that it does not list that it is transient")
    dtypes, sizes, strides = list(page.dtypes), list(page.sizes), list(page.strides)
    bounds = pairwise(accumulate(page.ranks, initial=0))
    rows = zip(page.names, page.dtype_index, bounds, page.regions, page.offsets, page.bytes, strict=True)
    transient = frozenset(page.transient)
    for position, (name, dtype, (start, end), region, offset, nbytes) in enumerate(rows):
        shape, steps = tuple(sizes[start:end]), tuple(strides[start:end])
        persistent = position not in transient
        yield TensorSpec(name, dtypes[dtype], shape, steps, region, offset, nbytes, persistent)


def file_blocks(data: bytes) -> Iterator[pb.FileBlock]:
    """Yield a file in blocks."""
    for start in range(0, len(data), BLOCK_BYTES):
        yield pb.FileBlock(data=data[start : start + BLOCK_BYTES])


def readers_to_message(readers: Iterable[ReaderStatus]) -> pb.ListReadersResponse:
    """Return the answer to ListReaders."""
    return pb.ListReadersResponse(
        readers=[
            pb.Reader(
                source_id=r.source_id,
                reader_id=r.reader_id,
                reader_host=r.reader_host,
                verified_bytes=r.verified_bytes,
                total_bytes=r.total_bytes,
                seconds=r.seconds,
            )
            for r in readers
        ]
    )


def readers_from_message(message: pb.ListReadersResponse) -> list[ReaderStatus]:
    """Return who reads from a source."""
    return [
        ReaderStatus(r.source_id, r.reader_id, r.reader_host, r.verified_bytes, r.total_bytes, r.seconds)
        for r in message.readers
    ]
