"""Descriptors of memory come through whole, and anything that is not memory is refused."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable

import pytest

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory import HostArena
from modelexpress.transport.passing import (
    BATCH,
    close_all,
    read_only,
    receive_descriptors,
    send_descriptors,
    unfit,
)


def exchange(send: Callable[[socket.socket], None], region_bytes: list[int]) -> list[int]:
    """Return the descriptors that one end of a connection gets from the other."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(5)

    def run() -> None:
        with theirs:
            send(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        return receive_descriptors(ours, region_bytes)
    finally:
        ours.close()
        thread.join()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_descriptors_than_fit_into_a_message_arrive_in_order() -> None:
    count = 2 * BATCH + 3
    arenas = [HostArena(number + 1) for number in range(5)]
    sent = [arenas[number % 5].region.descriptor or -1 for number in range(count)]
    before = open_descriptors()
    received = exchange(lambda sock: send_descriptors(sock, sent), [number % 5 + 1 for number in range(count)])
    assert [os.fstat(each).st_ino for each in received] == [os.fstat(each).st_ino for each in sent]
    assert not any(os.get_inheritable(each) for each in received)
    close_all(received)
    assert open_descriptors() == before
    for arena in arenas:
        arena.close()


def test_memory_that_is_too_small_is_refused() -> None:
    with HostArena(100) as arena:
        before = open_descriptors()
        descriptor = arena.region.descriptor or -1
        with pytest.raises(TransportUnavailable, match="region 1 of the source is refused: it has 100 bytes"):
            exchange(lambda sock: send_descriptors(sock, [descriptor] * 2), [100, 101])
        assert open_descriptors() == before


def test_what_is_no_memory_is_refused() -> None:
    with tempfile.TemporaryFile() as file, socket.socket() as sock:
        for descriptor in (file.fileno(), sock.fileno()):
            assert unfit(descriptor, 0) == "it is no memfd"
            before = open_descriptors()
            with pytest.raises(TransportUnavailable, match="it is no memfd"):
                exchange(lambda end, bad=descriptor: send_descriptors(end, [bad]), [0])  # type: ignore[misc]
            assert open_descriptors() == before


@pytest.mark.parametrize("said", [b"", b"\x01", b"\x02\x00", b"garbage"])
def test_bytes_without_descriptors_are_refused(said: bytes) -> None:
    with pytest.raises((PeerLost, TransportUnavailable)):
        exchange(lambda sock: sock.sendall(said), [8, 8])


def test_more_descriptors_than_announced_are_closed() -> None:
    def send_three(sock: socket.socket) -> None:
        socket.send_fds(sock, [b"\x03\x00"], [descriptor] * 3)

    with HostArena(8) as arena:
        before = open_descriptors()
        descriptor = arena.region.descriptor or -1
        with pytest.raises(PeerLost):
            exchange(send_three, [8])
        assert open_descriptors() == before


def test_a_read_only_descriptor_cannot_write() -> None:
    descriptor = os.memfd_create("open to all")
    os.write(descriptor, b"bytes")
    reading = read_only(descriptor)
    assert os.pread(reading, 5, 0) == b"bytes"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(reading, b"x", 0)
    close_all([descriptor, reading])
