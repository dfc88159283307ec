"""Conversions between the messages of `modelexpress.peer.v1` and our own records."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from modelexpress.wire import peer_pb2 as pb
from modelexpress.wire.records import FileSpec, Member, ReaderStatus, TransportOffer

BLOCK_BYTES = 1 << 20
"""A file travels in blocks of so many bytes."""


MOST_TENSORS = 1 << 20
MOST_REGIONS = 1 << 16
MOST_TRANSPORTS = 16
MOST_FILES = 1000
MOST_FILE_BYTES = 1 << 30
"""What a source may say of itself, so that one that lies cannot fill its readers' memory. The files are those of one
material together."""

MOST_MEMBERS = 64
"""Workers that a question or an answer names at most, so that neither side can fill the other's memory."""

_LONGEST_NAME = 256
_LONGEST_REASON = 1000
BEYOND_EVERYTHING = 1 << 56
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
    """What a source answers to a reader it lets in.

    Args:
        lease_id: The secret that transports ask for.
        ttl_seconds: The lease ends when nothing is heard of the reader for so long.
        manifest: What there is to read.
        transports: How.
        verified_chunks: Leading chunks that can be read now. A source that is still receiving has fewer than all.
        bytes_per_second: How fast the reader may read; 0: as fast as it can.
        above: Whom to ask when the source is gone: those that it gets its own bytes from, nearest first.
        pages: The pages of the manifest, where they came along.
    """

    lease_id: str
    ttl_seconds: float
    manifest: ManifestHead
    transports: tuple[TransportOffer, ...]
    verified_chunks: int = 0
    bytes_per_second: int = 0
    above: tuple[Member, ...] = ()
    pages: tuple[pb.ManifestPage, ...] = field(default=(), repr=False)


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
        transports=[
            pb.TransportOffer(name=o.name, descriptor=o.descriptor, refused=o.refused) for o in grant.transports
        ],
        verified_chunks=grant.verified_chunks,
        bytes_per_second=grant.bytes_per_second,
        above=members_to_messages(grant.above),
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
        transports=tuple(TransportOffer(o.name, o.descriptor, o.refused[:_LONGEST_REASON]) for o in message.transports),
        verified_chunks=message.verified_chunks,
        bytes_per_second=message.bytes_per_second,
        above=members_from_messages(message.above),
        pages=tuple(message.pages),
    )


def _check_head(head: pb.ManifestHeader) -> None:
    counts = (
        ("tensors", head.tensor_count, MOST_TENSORS),
        ("regions", len(head.region_bytes), MOST_REGIONS),
        ("files", len(head.files), MOST_FILES),
        ("bytes in files", sum(file.bytes for file in head.files), MOST_FILE_BYTES),
        ("bytes in a chunk", head.chunk_bytes, BEYOND_EVERYTHING),
    )
    for what, number, most in counts:
        if number > most:
            raise MessageInvalid(f"{number} {what}; the limit is {most}")
    if not head.chunk_bytes:
        raise MessageInvalid("chunks of no bytes")


def members_to_messages(members: Iterable[Member]) -> list[pb.Member]:
    """Return workers that may be asked."""
    return [pb.Member(worker_id=member.worker_id, endpoint=member.endpoint) for member in members]


def members_from_messages(messages: Sequence[pb.Member]) -> tuple[Member, ...]:
    """Return workers that may be asked.

    Raises:
        MessageInvalid: They are more, or have longer names, than any honest source says.
    """
    if len(messages) > MOST_MEMBERS:
        raise MessageInvalid(f"{len(messages)} workers to ask; the limit is {MOST_MEMBERS}")
    if any(max(len(message.worker_id), len(message.endpoint)) > _LONGEST_NAME for message in messages):
        raise MessageInvalid(f"a worker to ask has a name of more than {_LONGEST_NAME} characters")
    return tuple(Member(message.worker_id, message.endpoint) for message in messages)


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
                endpoint=r.endpoint,
            )
            for r in readers
        ]
    )


def readers_from_message(message: pb.ListReadersResponse) -> list[ReaderStatus]:
    """Return who reads from a source."""
    return [
        ReaderStatus(r.source_id, r.reader_id, r.reader_host, r.verified_bytes, r.total_bytes, r.seconds, r.endpoint)
        for r in message.readers
    ]
