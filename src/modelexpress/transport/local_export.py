"""What `local` offers of a source: descriptors of host memory, and how device memory is mapped."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelexpress.errors import DeviceError, TransportError, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.local_descriptor import LocalDescriptor, boot_id
from modelexpress.transport.passing import close_all, read_only, send_descriptors, unfit
from modelexpress.transport.reception import Reception, ServedExport
from modelexpress.transport.server import GREETING_SECONDS, Connection
from modelexpress.transport.verdict import Verdict, encode_answer

if TYPE_CHECKING:
    from modelexpress.memory.cuda_share import Share

UNMAPPING_SECONDS = 10.0
"""How long a source that withdraws device memory waits for its readers to unmap it."""


class LocalExport(ServedExport):
    """Regions that readers get descriptors of, and of device memory what lets them map it.

    A reader of device memory says farewell when it has read everything, and hangs up when it has unmapped everything:
    in between its lease can end, but the export does not.

    Raises:
        TransportUnavailable: A region cannot be shared.
    """

    def __init__(self, reception: Reception, regions: Sequence[Region]) -> None:
        super().__init__(reception)
        self._region_bytes = tuple(region.nbytes for region in regions)
        self._device_regions = tuple(n for n, region in enumerate(regions) if region.device is not None)
        self._descriptor = b""
        self._descriptors: list[int] = []
        self._handover = b""
        # Entered by the lock: what a signal raises can strike inside the Python of a condition, and leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._unmapping: set[Connection] = set()
        self._owner = os.getpid()
        try:
            for number, region in enumerate(regions):
                if region.device is None:
                    self._descriptors.append(_shareable(number, region))
            if self._device_regions:
                self._share_devices([regions[number] for number in self._device_regions])
        except TransportError:
            self.release()
            raise

    @property
    def descriptor(self) -> bytes:
        return self._descriptor

    def place(self, path: Path) -> None:
        """Say at which socket the export is served."""
        found = path.stat()
        self._descriptor = (
            LocalDescriptor(
                boot_id=boot_id(),
                path=str(path),
                device=found.st_dev,
                inode=found.st_ino,
                export=self.export_id.hex(),
                region_bytes=self._region_bytes,
                device_regions=self._device_regions,
            )
            .model_dump_json()
            .encode()
        )

    def serve(self, connection: Connection) -> None:
        connection.sock.settimeout(GREETING_SECONDS)
        connection.sock.sendall(encode_answer(Verdict.GRANTED))
        if self._handover:
            connection.sock.sendall(self._handover)
        send_descriptors(connection.sock, self._descriptors)
        # A reader has nothing more to say but its farewell: else what arrives is that it is gone.
        left = connection.wait_readable()
        if self._handover and left:
            self._let_unmap(connection)
        elif self._handover and connection.verdict is not None:
            _await_unmapping(connection.sock, connection.verdict)

    def close(self) -> None:
        super().close()
        if os.getpid() != self._owner:
            return  # a forked child has none of the threads that serve readers
        with self._lock:
            self._changed.wait_for(lambda: not self._unmapping, UNMAPPING_SECONDS)
            late = tuple(self._unmapping)
        for connection in late:
            connection.cut()

    def release(self) -> None:
        close_all(self._descriptors)

    def _share_devices(self, regions: Sequence[Region]) -> None:
        # Only where a GPU is involved: hosts without one never import what reaches for it.
        from modelexpress.memory.cuda_driver import driver
        from modelexpress.memory.cuda_share import share
        from modelexpress.transport.handover import Handover

        shares: list[Share] = []
        devices = sorted({region.device or 0 for region in regions})
        try:
            for region in regions:
                shared, descriptors = share(region)
                shares.append(shared)
                self._descriptors += descriptors
            uuids = tuple(driver().uuid(device) for device in devices)
        except DeviceError as error:
            raise TransportUnavailable(f"device memory cannot be shared: {error}") from error
        owners = tuple(devices.index(region.device or 0) for region in regions)
        self._handover = Handover(uuids, tuple(shares), owners).encode()

    def _let_unmap(self, connection: Connection) -> None:
        """Let a reader go that has read everything, and wait until it has unmapped everything, too."""
        with self._lock:
            self._unmapping.add(connection)
        try:
            self.gate.leave(connection)
            connection.sock.settimeout(None)
            while connection.sock.recv(4096):
                continue
        finally:
            with self._lock:
                self._unmapping.discard(connection)
                self._changed.notify_all()


def _await_unmapping(sock: socket.socket, verdict: Verdict) -> None:
    """Tell a reader that the memory goes, and wait until it has unmapped it: the driver leaves the rest undefined."""
    sock.sendall(encode_answer(verdict))
    deadline = time.monotonic() + UNMAPPING_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(4096):
            return


def _shareable(number: int, region: Region) -> int:
    """Return a read-only descriptor of a region's memory."""
    if region.descriptor is None:
        raise TransportUnavailable(f"region {number} is ordinary memory; put its tensors into a HostArena")
    if (problem := unfit(region.descriptor, region.nbytes)) is not None:
        raise TransportUnavailable(f"region {number} cannot be read by others: {problem}")
    try:
        return read_only(region.descriptor)
    except OSError as error:
        raise TransportUnavailable(f"region {number} cannot be opened for readers: {error}") from error
