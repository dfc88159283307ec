"""Bytes through plain Python sockets, with nothing around them: the limit that the transport `tcp` is compared with.

Run as a module it is the sender, a process of its own: it prints its address, then answers every connection with as
many bytes as it is asked for, until its standard input ends.
"""

import argparse
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from modelexpress.cli.speed import filled_arena
from modelexpress.memory import HostArena

_REQUEST = struct.Struct("<QQ")
_BLOCK = 8 << 20


def receive_seconds(address: str, nbytes: int, streams: int) -> float:
    """Return how long it takes to receive `nbytes` into pages that nobody has touched.

    Args:
        address: HOST:PORT of a sender.
        nbytes: How many; each stream receives one range of them.
        streams: Connections, with a thread each.
    """
    host, _, port = address.rpartition(":")
    arena = HostArena(nbytes)
    share = -(-nbytes // streams)
    ranges = [(start, min(start + share, nbytes)) for start in range(0, nbytes, share)]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(streams))
        sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in ranges]
        started = time.perf_counter()
        for received in [
            pool.submit(_receive, sock, arena, *between) for sock, between in zip(sockets, ranges, strict=True)
        ]:
            received.result()
        seconds = time.perf_counter() - started
    arena.close()
    return seconds


def _receive(sock: socket.socket, arena: HostArena, start: int, end: int) -> None:
    sock.sendall(_REQUEST.pack(start, end))
    with memoryview(arena) as view:
        while start < end:
            count = sock.recv_into(view[start : min(start + _BLOCK, end)])
            if count == 0:
                raise ConnectionResetError("the sender has ended")
            start += count


def serve(nbytes: int) -> None:
    """Answer connections until standard input ends."""
    arena = filled_arena(nbytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, arena), daemon=True).start()
        host, port = server.getsockname()
        sys.stdout.write(f"{host}:{port}\n")
        sys.stdout.flush()
        sys.stdin.read()


def _accept(server: socket.socket, arena: HostArena) -> None:
    while True:
        try:
            sock, _ = server.accept()
        except OSError:
            return  # the process is ending
        threading.Thread(target=_send, args=(sock, arena), daemon=True).start()


def _send(sock: socket.socket, arena: HostArena) -> None:
    with sock, memoryview(arena) as view:
        start, end = _REQUEST.unpack(sock.recv(_REQUEST.size))
        for place in range(start, end, _BLOCK):
            sock.sendall(view[place : min(place + _BLOCK, end)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bytes", type=int)
    serve(parser.parse_args().bytes)
