"""What a source hands over to let device memory be mapped: one message on the connection of `local`.

    head      4s magic, u16 version, u16 devices, u32 regions, u32 bytes that follow, all little-endian
    devices   16 bytes each: the UUIDs of the devices whose memory it is
    regions   u8 kind, u8 number of the device in the list, then
              kind 1, an allocation of cudaMalloc: its IPC handle of 64 bytes
              kind 2, virtual memory management: u32 allocations, u64 bytes of each

File descriptors of the allocations of kind 2 follow in the same order.
"""

import socket
import struct
import time
from dataclasses import dataclass

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory.cuda_driver import IPC_HANDLE_BYTES, UUID_BYTES
from modelexpress.memory.cuda_share import IpcShare, Share, VmmShare
from modelexpress.transport.greeting import receive_exactly

_MAGIC = b"MXDH"
_VERSION = 1
_HEAD = struct.Struct("<4sHHII")
_REGION = struct.Struct("<BB")
_COUNT = struct.Struct("<I")
_IPC, _VMM = 1, 2
_SIZE_BYTES = 8
_MOST_BYTES = 16 << 20
_MOST_DEVICES = 256
_MOST_ALLOCATIONS = 1 << 16
_ADDRESS_SPACE = 1 << 47


@dataclass(frozen=True)
class Handover:
    """How each device region is mapped, in the order of the regions.

    Args:
        devices: UUID of each device whose memory is handed over.
        shares: One a region.
        owners: For each region, the index of its device.
    """

    devices: tuple[bytes, ...]
    shares: tuple[Share, ...]
    owners: tuple[int, ...]

    @property
    def descriptors(self) -> int:
        """How many file descriptors come along."""
        return sum(len(share.nbytes) for share in self.shares if isinstance(share, VmmShare))

    def encode(self) -> bytes:
        """Return the handover as it travels.

        Raises:
            TransportUnavailable: It has more devices or allocations than a target accepts.
        """
        regions = [_REGION.pack(_kind(s), owner) + _body(s) for s, owner in zip(self.shares, self.owners, strict=True)]
        body = b"".join([*self.devices, *regions])
        _check_allocations(self.descriptors)
        if len(self.devices) > _MOST_DEVICES or len(body) > _MOST_BYTES:
            raise TransportUnavailable(f"{len(self.shares)} regions are too many to be handed over: use an arena")
        return _HEAD.pack(_MAGIC, _VERSION, len(self.devices), len(self.shares), len(body)) + body

    @classmethod
    def decode(cls, devices: int, regions: int, body: bytes) -> "Handover":
        """Return the handover of so many devices and regions that `body` holds.

        Raises:
            TransportUnavailable: It is none.
        """
        try:
            return _decode(devices, regions, body)
        except struct.error as error:
            raise TransportUnavailable("the source's handover of device memory is cut short") from error

    @classmethod
    def receive(cls, sock: socket.socket, regions: int, timeout: float) -> "Handover":
        """Return what the source hands over for so many regions.

        Raises:
            TransportUnavailable: It is none, or for another number of regions.
            PeerLost: The connection broke.
        """
        deadline = time.monotonic() + timeout
        try:
            head = _HEAD.unpack(receive_exactly(sock, _HEAD.size, deadline))
            magic, version, devices, announced, length = head
            if magic != _MAGIC or version != _VERSION or length > _MOST_BYTES or devices > _MOST_DEVICES:
                raise TransportUnavailable("not a handover of this version; do both sides run the same one?")
            if announced != regions:
                raise TransportUnavailable(f"{regions} device regions were announced, {announced} handed over")
            return cls.decode(devices, regions, receive_exactly(sock, length, deadline))
        except OSError as error:
            raise PeerLost(f"the source did not hand over its device memory: {error}") from error


def _kind(share: Share) -> int:
    return _IPC if isinstance(share, IpcShare) else _VMM


def _body(share: Share) -> bytes:
    if isinstance(share, IpcShare):
        return share.handle
    return _COUNT.pack(len(share.nbytes)) + _sizes(len(share.nbytes)).pack(*share.nbytes)


def _sizes(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q")


def _decode(devices: int, regions: int, body: bytes) -> Handover:
    position = devices * UUID_BYTES
    if len(body) < position:
        raise TransportUnavailable("the source's handover of device memory is cut short")
    shares: list[Share] = []
    owners: list[int] = []
    for _ in range(regions):
        kind, owner = _REGION.unpack_from(body, position)
        share, position = _share(kind, body, position + _REGION.size)
        if owner >= devices:
            raise TransportUnavailable(f"the source's handover names device {owner} of {devices}")
        shares.append(share)
        owners.append(owner)
    if position != len(body):
        raise TransportUnavailable("the source's handover of device memory goes on after its end")
    uuids = tuple(body[start : start + UUID_BYTES] for start in range(0, devices * UUID_BYTES, UUID_BYTES))
    found = Handover(uuids, tuple(shares), tuple(owners))
    _check_allocations(found.descriptors)
    return found


def _share(kind: int, body: bytes, position: int) -> tuple[Share, int]:
    """Return the share that starts at a position, and where it ends."""
    if kind == _IPC:
        end = position + IPC_HANDLE_BYTES
        if end > len(body):
            raise TransportUnavailable("the source's handover of device memory is cut short")
        return IpcShare(body[position:end]), end
    if kind != _VMM:
        raise TransportUnavailable(f"the source's handover has a region of unknown kind {kind}")
    (count,) = _COUNT.unpack_from(body, position)
    if not count:
        raise TransportUnavailable("the source's handover has a region without allocations")
    _check_allocations(count)
    sizes = _sizes(count).unpack_from(body, position + _COUNT.size)
    if not all(0 < nbytes < _ADDRESS_SPACE for nbytes in sizes):
        raise TransportUnavailable("the source's handover has an allocation of impossible size")
    return VmmShare(sizes), position + _COUNT.size + count * _SIZE_BYTES


def _check_allocations(count: int) -> None:
    if count > _MOST_ALLOCATIONS:
        raise TransportUnavailable(f"the source hands over {count} allocations, {_MOST_ALLOCATIONS} are accepted")
