"""Opening a source on the same host where a GPU is involved: receiving, checking and mapping its regions."""

import socket
from contextlib import ExitStack

from modelexpress.errors import DeviceError, TransportUnavailable
from modelexpress.memory.cuda_share import IpcShare, MappedDeviceRegion, VmmShare
from modelexpress.transport.base import Reader
from modelexpress.transport.device_reader import DeviceReader, DeviceRegion, HostRegion, SourceRegion
from modelexpress.transport.handover import Handover
from modelexpress.transport.local_descriptor import LocalDescriptor
from modelexpress.transport.passing import close_all, receive_descriptors, receive_unchecked


def open_device_reader(sock: socket.socket, source: LocalDescriptor, device: int | None, timeout: float) -> Reader:
    """Return a reader of a source that has let this process in.

    Args:
        sock: The connection, just after the greeting.
        source: What the source says of its regions.
        device: The device that destinations are on; None: they are host memory, and device 0 copies.
        timeout: Seconds that the source may take to hand over its memory.

    Raises:
        TransportUnavailable: The memory cannot be mapped for that device.
        PeerLost: The connection broke.
    """
    reading = 0 if device is None else device
    numbers = set(source.device_regions)
    if not numbers <= set(range(len(source.region_bytes))):
        raise TransportUnavailable("the source says that regions are device memory which it does not have")
    shares: list[IpcShare | VmmShare] = []
    if numbers:
        shares = Handover.receive(sock, len(numbers), timeout).shares
    host_bytes = [size for number, size in enumerate(source.region_bytes) if number not in numbers]
    with ExitStack() as undo:
        host = receive_descriptors(sock, host_bytes)
        undo.callback(close_all, host)
        parts = receive_unchecked(sock, sum(len(s.nbytes) for s in shares if isinstance(s, VmmShare)))
        undo.callback(close_all, parts)
        regions = _open_all(source, numbers, shares, host, list(parts), reading, undo)
        undo.pop_all()
        close_all(parts)
    return DeviceReader(sock, regions, source.region_bytes, reading, to_device=device is not None)


def _open_all(
    source: LocalDescriptor,
    numbers: set[int],
    shares: list[IpcShare | VmmShare],
    host: list[int],
    parts: list[int],
    device: int,
    undo: ExitStack,
) -> list[SourceRegion]:
    regions: list[SourceRegion] = []
    waiting = iter(shares)
    for number, nbytes in enumerate(source.region_bytes):
        if number in numbers:
            share = next(waiting)
            count = len(share.nbytes) if isinstance(share, VmmShare) else 0
            try:
                mapped = MappedDeviceRegion(share, parts[:count], nbytes, device)
            except DeviceError as error:
                raise TransportUnavailable(f"device {device} cannot map the source's memory: {error}") from error
            del parts[:count]
            regions.append(DeviceRegion(mapped))
        else:
            regions.append(HostRegion(host.pop(0)))
        undo.callback(regions[-1].close)
    return regions
