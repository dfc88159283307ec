"""Opening a source on the same host where a GPU is involved: receiving, checking and mapping its regions."""

import os
import socket
from contextlib import ExitStack
from itertools import islice

from modelexpress.errors import DeviceError, TransportUnavailable
from modelexpress.memory.cuda_share import IpcShare, MappedDeviceRegion, VmmShare
from modelexpress.transport.base import Reader
from modelexpress.transport.device_reader import DeviceReader, DeviceRegion, HostRegion, SourceRegion
from modelexpress.transport.handover import Handover
from modelexpress.transport.local_descriptor import LocalDescriptor
from modelexpress.transport.passing import check_all, close_all, receive_unchecked


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
    parts = sum(len(share.nbytes) for share in shares if isinstance(share, VmmShare))
    with ExitStack() as undo:
        descriptors = receive_unchecked(sock, len(host_bytes) + parts)
        undo.callback(close_all, descriptors)
        check_all(descriptors[: len(host_bytes)], host_bytes)
        regions = _open_all(source, numbers, shares, descriptors, reading, undo)
        undo.pop_all()
    close_all(descriptors)
    return DeviceReader(sock, regions, source.region_bytes, reading, to_device=device is not None)


def _open_all(
    source: LocalDescriptor,
    numbers: set[int],
    shares: list[IpcShare | VmmShare],
    descriptors: list[int],
    device: int,
    undo: ExitStack,
) -> list[SourceRegion]:
    """Open every region in order; `descriptors` are those of the host regions, then those of the device regions."""
    regions: list[SourceRegion] = []
    host = iter(descriptors)
    parts = iter(descriptors[len(source.region_bytes) - len(numbers) :])
    waiting = iter(shares)
    for number, nbytes in enumerate(source.region_bytes):
        if number in numbers:
            share = next(waiting)
            own = list(islice(parts, len(share.nbytes))) if isinstance(share, VmmShare) else []
            try:
                regions.append(DeviceRegion(MappedDeviceRegion(share, own, nbytes, device)))
            except DeviceError as error:
                raise TransportUnavailable(f"device {device} cannot map the source's memory: {error}") from error
        else:
            regions.append(HostRegion(os.dup(next(host))))
        undo.callback(regions[-1].close)
    return regions
