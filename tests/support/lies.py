"""What a hostile worker may say: each entry changes one thing of an honest grant or of its manifest's page."""

import math
from collections.abc import Callable
from typing import Any

from modelexpress.wire import peer_pb2 as pb
from tests.support.hostile_worker import Lie

HUGE = (1 << 64) - 1


def _page(**columns: object) -> Lie:
    """Say something else about the first tensor, layout or chunk."""

    def lie(_: pb.AcquireLeaseResponse, page: pb.ManifestPage) -> None:
        for name, value in columns.items():
            getattr(page, name)[0] = value

    return lie


def _packed(width: int, **columns: int) -> Lie:
    """Say something else about the first tensor or chunk, in columns of integers of `width` bytes."""

    def lie(_: pb.AcquireLeaseResponse, page: pb.ManifestPage) -> None:
        for name, value in columns.items():
            setattr(page, name, value.to_bytes(width, "little") + getattr(page, name)[width:])

    return lie


def _cut(name: str, more: int) -> Lie:
    """Say so many bytes more, or less, in a column of integers."""

    def lie(_: pb.AcquireLeaseResponse, page: pb.ManifestPage) -> None:
        column = getattr(page, name)
        setattr(page, name, column[:more] if more < 0 else column + bytes(more))

    return lie


def _column(change: Callable[[pb.ManifestPage], object]) -> Lie:
    return lambda grant, page: change(page)


def _no_layouts(page: pb.ManifestPage) -> None:
    for name in ("dtypes", "bytes", "ranks", "sizes", "strides"):
        page.ClearField(name)


def _head(**fields: Any) -> Lie:
    def lie(grant: pb.AcquireLeaseResponse, _: pb.ManifestPage) -> None:
        for name, value in fields.items():
            setattr(grant.manifest, name, value)

    return lie


def _grant(change: Callable[[pb.AcquireLeaseResponse], object]) -> Lie:
    return lambda grant, page: change(grant)


def _descriptors(descriptor: bytes) -> Callable[[pb.AcquireLeaseResponse], None]:
    def change(grant: pb.AcquireLeaseResponse) -> None:
        for offer in grant.transports:
            offer.descriptor = descriptor

    return change


MANIFEST_LIES: dict[str, Lie] = {
    "a name twice": _page(names="tensor.1"),
    "another name": _page(names="tensor.x"),
    "an unknown dtype": _page(dtypes="float99"),
    "another dtype": _page(dtypes="int32"),
    "no dtype": _page(dtypes=""),
    "another shape": _page(sizes=8),
    "a huge shape": _page(sizes=HUGE),
    "strides with gaps": _page(strides=2),
    "overlapping strides": _page(strides=0),
    "huge strides": _page(strides=HUGE),
    "a region that is not there": _packed(4, regions=1),
    "a huge region": _packed(4, regions=(1 << 32) - 1),
    "an offset beyond the region": _packed(8, offsets=1 << 40),
    "a huge offset": _packed(8, offsets=HUGE),
    "more bytes than the region": _page(bytes=1 << 20),
    "huge bytes": _page(bytes=HUGE),
    "no bytes": _page(bytes=0),
    "more dimensions than there are": _page(ranks=3),
    "a huge rank": _page(ranks=(1 << 32) - 1),
    "a digest too few": _cut("digests", -8),
    "a digest too many": _cut("digests", 8),
    "half a digest": _cut("digests", -4),
    "half an offset": _cut("offsets", -4),
    "a region too many": _cut("regions", 4),
    "a layout that is not there": _packed(4, layouts=1),
    "a huge layout": _packed(4, layouts=(1 << 32) - 1),
    "a transient tensor that is not there": _packed(4, transient=4),
    "no layouts": _column(_no_layouts),
    "a tensor too few": _column(lambda page: page.names.pop()),
    "nothing at all": _column(lambda page: page.Clear()),
    "chunks of no bytes": _head(chunk_bytes=0),
    "other chunks": _head(chunk_bytes=1),
    "huge chunks": _head(chunk_bytes=HUGE),
    "a huge count": _head(tensor_count=(1 << 32) - 1),
    "another count": _head(tensor_count=5),
    "an unknown digest": _head(digest_algorithm="md5"),
    "an unknown scope": _head(scope="everything"),
    "no regions": _grant(lambda grant: grant.manifest.region_bytes.pop()),
    "a million regions": _grant(lambda grant: grant.manifest.region_bytes.extend([1] * 1_000_000)),
    "regions beyond the address space": _grant(lambda grant: grant.manifest.region_bytes.extend([HUGE] * 2)),
    "a huge lease": _grant(lambda grant: setattr(grant, "lease_id", "x" * 70_000)),
}
"""Found before anything is asked of a transport."""

TRANSPORT_LIES: dict[str, Lie] = {
    "no transports": _grant(lambda grant: grant.ClearField("transports")),
    "a thousand transports": _grant(lambda grant: grant.transports.extend([pb.TransportOffer(name="x")] * 1000)),
    "descriptors of nonsense": _grant(_descriptors(b"\xff{")),
    "empty descriptors": _grant(_descriptors(b"")),
    "another lease": _grant(lambda grant: setattr(grant, "lease_id", "another")),
    "no lease": _grant(lambda grant: setattr(grant, "lease_id", "")),
    "a lease that is no ASCII": _grant(lambda grant: setattr(grant, "lease_id", "\u20ac")),
}
"""Found when the transport is opened."""

CONTENT_LIES: dict[str, Lie] = {
    "a wrong digest": _packed(8, digests=1),
    "the place of another tensor": _packed(8, offsets=64),
}
"""Found when bytes arrive that are not what was said."""

HARMLESS_LIES: dict[str, Lie] = {
    "a lease that lasts no time": _grant(lambda grant: setattr(grant, "ttl_seconds", 0.0)),
    "a lease that lasts less than no time": _grant(lambda grant: setattr(grant, "ttl_seconds", -1e300)),
    "a lease that lasts forever": _grant(lambda grant: setattr(grant, "ttl_seconds", math.inf)),
    "a lease that lasts nobody knows how long": _grant(lambda grant: setattr(grant, "ttl_seconds", math.nan)),
    "another total": _head(total_bytes=HUGE),
}
"""They change nothing for the reader."""

FILE_PATHS = [
    "../evil.json",
    "a/../../evil.json",
    "/etc/evil.json",
    "//evil.json",
    "..",
    ".",
    "",
    "a//b.json",
    ".hidden.json",
    "evil.py",
    "model.safetensors",
    "model.safetensors.index.json",
    "nul\0.json",
    "line\n.json",
    "config.json/under.json",
]
"""Names of files that would be written where they must not be, or be what they must not be."""
