"""Opening a source on the same host where a GPU is involved: receiving, checking and mapping its regions."""

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack

from modelexpress.errors import DeviceError, TransportUnavailable
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_share import IpcShare, MappedRegion, mapped_region
from modelexpress.transport.base import Reader
from modelexpress.transport.device_mapping import DeviceMapping
from modelexpress.transport.device_reader import DeviceReader, Opening
from modelexpress.transport.handover import Handover
from modelexpress.transport.local_descriptor import LocalDescriptor
from modelexpress.transport.passing import check_all, close_all, receive_unchecked


def open_device_reader(sock: socket.socket, source: LocalDescriptor, device: int | None, timeout: float) -> Reader:
    """Return a reader of a source that has let this process in.

    Its first region is mapped, at least in part; the others are mapped in the background.

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
    started = time.perf_counter()
    numbers = sorted(set(source.device_regions))
    if numbers and not (numbers[0] >= 0 and numbers[-1] < len(source.region_bytes)):
        raise TransportUnavailable("the source says that regions are device memory which it does not have")
    own = set(numbers)
    files = [number for number in range(len(source.region_bytes)) if number not in own]
    handover = Handover((), (), ())
    if numbers:
        handover = Handover.receive(sock, len(numbers), timeout)
        _check_reach(handover.devices, reading)
    with ExitStack() as undo:
        descriptors = receive_unchecked(sock, len(files) + handover.descriptors)
        undo.callback(close_all, descriptors)
        check_all(descriptors[: len(files)], [source.region_bytes[number] for number in files])
        parts = descriptors[len(files) :]
        del descriptors[len(files) :]  # the mapping owns them now
        mapping = DeviceMapping(_regions(source, numbers, handover, parts, reading), reading)
        undo.callback(mapping.close)
        received = time.perf_counter()
        _map_first(mapping, reading)
        opening = Opening(received - started, time.perf_counter() - received)
        undo.pop_all()
    return DeviceReader(
        sock,
        mapping,
        dict(zip(files, descriptors, strict=True)),
        source.region_bytes,
        handover.devices,
        reading,
        to_device=device is not None,
        opening=opening,
    )


def _check_reach(uuids: Sequence[bytes], device: int) -> None:
    """Refuse a source whose device is seen here, and cannot be reached; one that is not seen may be."""
    try:
        for peer in range(driver().device_count()):
            if peer != device and driver().uuid(peer) in uuids and not driver().can_access(device, peer):
                raise TransportUnavailable(f"device {device} cannot reach the source's device, here device {peer}")
    except DeviceError as error:
        raise TransportUnavailable(f"device {device} cannot be used: {error}") from error


def _regions(
    source: LocalDescriptor, numbers: Sequence[int], handover: Handover, descriptors: list[int], device: int
) -> dict[int, MappedRegion]:
    """Return the device regions by number, none of them mapped; every descriptor is owned by one, or closed."""
    regions: dict[int, MappedRegion] = {}
    position = 0
    try:
        for number, share in zip(numbers, handover.shares, strict=True):
            count = 0 if isinstance(share, IpcShare) else len(share.nbytes)
            own, position = descriptors[position : position + count], position + count
            regions[number] = mapped_region(share, own, source.region_bytes[number], device)
    except DeviceError as error:
        close_all(descriptors[position:])
        for region in regions.values():
            region.close()
        raise TransportUnavailable(f"device {device} cannot map the source's memory: {error}") from error
    return regions


def _map_first(mapping: DeviceMapping, device: int) -> None:
    try:
        mapping.map_first()
    except DeviceError as error:
        raise TransportUnavailable(f"device {device} cannot reach the source's device: {error}") from error
