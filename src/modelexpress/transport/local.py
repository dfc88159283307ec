"""The transport `local`: source and target on one host; the source passes descriptors of its memory."""

import os
import socket
import struct
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from modelexpress.errors import AccessDenied, PeerLost, TransferTimeout, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Export, LinkLimit, Reader, Transport
from modelexpress.transport.fork import closed_in_children
from modelexpress.transport.greeting import Greeting, greet
from modelexpress.transport.limits import copy_limit
from modelexpress.transport.local_descriptor import MAX_REGIONS, LocalDescriptor, boot_id
from modelexpress.transport.local_export import LocalExport
from modelexpress.transport.local_reader import LocalReader, copy_threads
from modelexpress.transport.passing import receive_descriptors
from modelexpress.transport.reception import Reception
from modelexpress.transport.runtime_directory import listen_privately
from modelexpress.transport.server import Connection
from modelexpress.transport.stream import set_stall_deadline

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class LocalTransport(Transport):
    """Moves bytes between processes of one user on one host.

    Args:
        threads: Threads that copy for one reader; None: one a core, at most four.
        stall_timeout: Seconds that a source may take to answer.
    """

    name = "local"

    def __init__(self, *, threads: int | None = None, stall_timeout: float = 10.0) -> None:
        self._threads = threads or copy_threads()
        self._stall_timeout = stall_timeout
        self._reception = Reception(self._listen, _check_peer, self.name)
        self._path: Path | None = None
        self._cleanup: weakref.finalize[..., LocalTransport] | None = None

    def unavailable(self) -> str | None:
        if not boot_id():
            return "the kernel does not say which boot this is, so hosts cannot be told apart"
        try:
            sock, path = listen_privately()
        except TransportUnavailable as error:
            return str(error)
        sock.close()
        path.unlink(missing_ok=True)
        return None

    def export(self, regions: Sequence[Region]) -> Export:
        if len(regions) > MAX_REGIONS:
            raise TransportUnavailable(f"{len(regions)} regions are too many; put them into an arena")
        export = LocalExport(self._reception, regions)
        try:
            self._reception.add(export)
        except TransportUnavailable:
            export.release()
            raise
        assert self._path is not None, "the reception listens once it has an export"
        export.place(self._path)
        return export

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        source = LocalDescriptor.parse(descriptor)
        if (reason := source.elsewhere()) is not None:
            raise TransportUnavailable(reason)
        with ExitStack() as undo:
            sock = undo.enter_context(closed_in_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            # Waits for room in the queue of a busy source; a socket with a timeout of Python's would not.
            set_stall_deadline(sock, self._stall_timeout, tls=False)
            _connect(sock, source.path)
            greet(sock, Greeting(bytes.fromhex(source.export), token.encode()), self._stall_timeout)
            if device is None and not source.device_regions:
                descriptors = receive_descriptors(sock, source.region_bytes)
                reader: Reader = LocalReader(sock, descriptors, source.region_bytes, self._threads)
            else:
                reader = self._open_device(sock, source, device)
            undo.pop_all()
        return reader

    def _open_device(self, sock: socket.socket, source: LocalDescriptor, device: int | None) -> Reader:
        # Only where a GPU is involved: hosts without one never import what reaches for it.
        from modelexpress.transport.device_opening import open_device_reader

        return open_device_reader(sock, source, device, self._stall_timeout)

    def limit(self, descriptor: bytes) -> LinkLimit | None:
        """Measure host memory; of device memory nothing is known without a mapping: `DeviceReader.limit` has one."""
        try:
            return None if LocalDescriptor.parse(descriptor).device_regions else copy_limit()
        except TransportUnavailable:
            return None

    def close(self) -> None:
        """Stop serving. Mappings that a closed reader leaves to the background are given back soon after."""
        self._reception.close()
        if self._cleanup is not None:
            self._cleanup()

    def _listen(self) -> socket.socket:
        sock, self._path = listen_privately()
        # A process that ends without closing its transports takes its socket's name with it, if it can.
        self._cleanup = weakref.finalize(self, _remove, self._path, os.getpid())
        return sock


def _check_peer(connection: Connection) -> None:
    """Refuse processes of other users."""
    if (uid := _peer_uid(connection.sock)) != os.geteuid():
        raise AccessDenied(f"the source runs as user {os.geteuid()}, this process as {uid}: run both as one user")


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _connect(sock: socket.socket, path: str) -> None:
    try:
        sock.connect(path)
    except ConnectionRefusedError as error:
        raise PeerLost("the source's process has ended") from error
    except BlockingIOError as error:
        raise TransferTimeout("the source does not accept connections; is its process stopped?") from error
    except (OSError, ValueError) as error:
        raise TransportUnavailable(f"the source's socket cannot be reached: {error}") from error
    if (uid := _peer_uid(sock)) != os.geteuid():
        raise TransportUnavailable(f"the source runs as user {uid}, this process as {os.geteuid()}")


def _remove(path: Path, owner: int) -> None:
    """Remove a socket's name, but not from a forked child."""
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
