"""How fast a link could be: quick measurements, each within 100 ms, and what the network card says."""

import ctypes
import functools
import mmap
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from modelexpress.transport.base import LinkLimit

_BLOCK = 8 << 20
_SOURCE = 32 << 20
_MOST = 128 << 20
_SECONDS = 0.05
_ROUTES = Path("/proc/net/route")
_INTERFACES = Path("/sys/class/net")


@functools.cache
def copy_limit() -> LinkLimit:
    """Return how fast one thread copies memory into pages that nobody has touched, measured once in a process."""
    source = mmap.mmap(-1, _SOURCE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    target = mmap.mmap(-1, _MOST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(source))
    end = ctypes.addressof(ctypes.c_char.from_buffer(target))
    ctypes.memset(begin, 1, _SOURCE)
    copied = 0
    started = time.perf_counter()
    while copied < _MOST and time.perf_counter() - started < _SECONDS:
        ctypes.memmove(end + copied, begin + copied % _SOURCE, _BLOCK)
        copied += _BLOCK
    rate = copied / (time.perf_counter() - started)
    return LinkLimit(rate, f"one thread copied {copied >> 20} MiB of memory into fresh pages")


def link_limit(host: str, port: int) -> LinkLimit | None:
    """Return how fast a connection to `host` could be; None where neither the kernel nor a measurement says.

    Args:
        host: Name or address of the source.
        port: A port there; nothing is sent to it.
    """
    try:
        family, kind, _, _, peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(peer)  # of a datagram socket: only the route is looked up
            own = probe.getsockname()[0]
    except (OSError, UnicodeError):
        return None
    if own == peer[0]:
        return _loopback_limit()
    return _card_limit(str(peer[0])) if family == socket.AF_INET else None


@functools.cache
def _loopback_limit() -> LinkLimit | None:
    """Measure two plain sockets of this process: the copies within the kernel are the limit."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            receiving = socket.create_connection(server.getsockname(), timeout=_SECONDS)
            sending, _ = server.accept()
    except OSError:
        return None
    with receiving, sending:
        sender = threading.Thread(target=_send_until_closed, args=(sending,), name="mx-tcp-limit", daemon=True)
        sender.start()
        buffer = bytearray(_BLOCK)
        received = 0
        started = time.perf_counter()
        # The time is over, too, when a machine is so busy that the sender does not get to run.
        with suppress(TimeoutError):
            while time.perf_counter() - started < _SECONDS:
                received += receiving.recv_into(buffer)
        seconds = time.perf_counter() - started
        receiving.shutdown(socket.SHUT_RDWR)
        receiving.close()
        sender.join()
    return LinkLimit(received / seconds, "one plain connection of this host to itself") if received else None


def _send_until_closed(sock: socket.socket) -> None:
    block = bytes(_BLOCK)
    try:
        while True:
            sock.sendall(block)
    except OSError:
        # The measurement is over: the other end was closed.
        return


def _card_limit(address: str) -> LinkLimit | None:
    """Return the line rate of the interface that routes to an IPv4 address."""
    try:
        name = _interface(struct.unpack("=I", socket.inet_aton(address))[0], _ROUTES.read_text())
        megabits = int((_INTERFACES / name / "speed").read_text()) if name else -1
    except (OSError, ValueError):
        return None  # no such file, or a virtual card, which has no speed
    if megabits <= 0:
        return None
    return LinkLimit(megabits * 1e6 / 8, f"line rate of {name}: {megabits / 1000:g} Gbit/s")


def _interface(address: int, table: str) -> str | None:
    """Return the interface of the most specific route to `address`, in the byte order of /proc/net/route."""
    best: tuple[int, str] | None = None
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = int(fields[1], 16), int(fields[7], 16)
        if address & mask == destination and (best is None or mask.bit_count() > best[0]):
            best = (mask.bit_count(), fields[0])
    return best[1] if best else None
