"""How fast the transports move bytes between two processes, against the limits of the machine.

Run `python -m benchmarks.transport`; it takes a minute or two, needs 10 GiB of memory, and writes
benchmarks/results/transport.json. GB are 10^9 bytes. The source is another process. Each limit is measured in the
same rounds as what is compared with it; the first round touches memory that the machine has not given out before,
and is dropped. Of the others the fastest counts: other work only ever slows a round down.
"""

import argparse
import ctypes
import json
import mmap
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.cli.sizes import parse_bytes
from modelexpress.memory import HostArena, memory_view
from modelexpress.transport import LocalTransport, Run, TcpTransport, Transport

RESULTS = Path(__file__).parent / "results" / "transport.json"
TOKEN = "benchmark"
BLOCK = 8 << 20
SMALL = 4096
SOURCE_BYTES = 1 << 30
WINDOW = 512 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # as allocators ask the kernel for memory

Took = dict[tuple[str, int], float]
"""Seconds of each measurement: its name, and which window of the memory it filled."""

COPY_FRESH, LOCAL_FRESH, TCP_FRESH = "copy into fresh pages", "local into fresh pages", "tcp into fresh pages"


@dataclass(frozen=True)
class Scope:
    """How much is measured; the defaults are what the targets speak of."""

    nbytes: int = 4 << 30
    tensors: int = 300
    small_runs: int = 20_000
    streams: int = 4
    rounds: int = 4


class Memory:
    """Private memory of this process."""

    def __init__(self, nbytes: int) -> None:
        self._map = mmap.mmap(-1, nbytes, PRIVATE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def forget(self, start: int, nbytes: int) -> None:
        """Give pages back, so that the next ones there are fresh."""
        self._map.madvise(mmap.MADV_DONTNEED, start, nbytes)


def serve(scope: Scope, parent: Connection) -> None:
    """Be the source: an arena behind both transports, and behind plain sockets."""
    with HostArena(scope.nbytes) as arena, LocalTransport() as local, TcpTransport() as tcp:
        ctypes.memset(arena.region.address, 7, scope.nbytes)
        exports = [transport.export([arena.region]) for transport in (local, tcp)]
        for export in exports:
            export.grant(TOKEN)
        with socket.create_server(("127.0.0.1", 0)) as plain:
            parent.send([export.descriptor for export in exports])
            parent.send(plain.getsockname())
            send_plainly(plain, arena.region.view(), scope.streams)


def send_plainly(server: socket.socket, data: memoryview, streams: int) -> None:
    """Send an equal share of `data` on each connection, as a plain program would."""

    def send(sock: socket.socket, share: memoryview) -> None:
        with sock:
            for start in range(0, len(share), BLOCK):
                sock.sendall(share[start : start + BLOCK])

    share = len(data) // streams
    while True:
        for number in range(streams):
            sock, _ = server.accept()
            part = data[number * share : (number + 1) * share]
            threading.Thread(target=send, args=(sock, part), daemon=True).start()


def receive_plainly(address: tuple[str, int], target: Memory, scope: Scope) -> None:
    """Receive what `send_plainly` sends."""

    def receive(sock: socket.socket, left: memoryview) -> None:
        with sock:
            while left:
                left = left[sock.recv_into(left[:BLOCK]) :]

    share = scope.nbytes // scope.streams
    threads = []
    for number in range(scope.streams):
        view = memory_view(target.address + number * share, share)
        threads.append(threading.Thread(target=receive, args=(socket.create_connection(address), view)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def copy_once(target: Memory, source: Memory, start: int, nbytes: int) -> None:
    """Copy on one thread, from a source that is far larger than any cache."""
    for position in range(start, start + nbytes, BLOCK):
        size = min(BLOCK, start + nbytes - position)
        ctypes.memmove(target.address + position, source.address + position % SOURCE_BYTES, size)


def read(transport: Transport, descriptor: bytes, runs: Sequence[Run]) -> None:
    """Open, read and close, as a load does."""
    with transport.open(descriptor, TOKEN) as reader:
        reader.read(runs).wait()


def tensor_runs(target: Memory, scope: Scope) -> list[Run]:
    """Return the runs of `scope.tensors` tensors of one arena, each with a destination of its own."""
    size = scope.nbytes // scope.tensors
    return [Run(0, number * size, target.address + number * size, size) for number in range(scope.tensors)]


def scattered_runs(target: Memory, scope: Scope) -> list[Run]:
    """Return many small runs that no plan could merge."""
    step = scope.nbytes // scope.small_runs
    return [Run(0, n * step, target.address + n * SMALL, SMALL) for n in range(scope.small_runs)]


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def into_fresh_pages(scope: Scope, source: Memory, target: Memory, exports: Sequence[bytes]) -> Took:
    """Fill memory whose pages were just given back, in windows, each way in turn.

    A virtual machine hands idle pages back to its host, and getting them again takes longer than any copy: a window
    is filled before that happens, and compared with the same window of other rounds.
    """
    local, tcp = LocalTransport(), TcpTransport(streams=scope.streams)
    took: Took = {}
    runs = tensor_runs(target, scope)
    per_window = max(1, WINDOW * scope.tensors // scope.nbytes)
    for first in range(0, scope.tensors, per_window):
        window = runs[first : first + per_window]
        start, nbytes = window[0].offset, sum(run.nbytes for run in window)
        actions = {
            COPY_FRESH: partial(copy_once, target, source, start, nbytes),
            LOCAL_FRESH: partial(read, local, exports[0], window),
            TCP_FRESH: partial(read, tcp, exports[1], window),
        }
        for name, action in actions.items():
            target.forget(start // mmap.PAGESIZE * mmap.PAGESIZE, nbytes)
            took[name, first] = seconds(action)
    return took


def one_round(scope: Scope, source: Memory, target: Memory, exports: Sequence[bytes], plain: tuple[str, int]) -> Took:
    """Measure everything once, in turn."""
    local, tcp = LocalTransport(), TcpTransport(streams=scope.streams)
    runs, scattered = tensor_runs(target, scope), scattered_runs(target, scope)
    took = into_fresh_pages(scope, source, target, exports)
    actions = {
        "copy into used pages": partial(copy_once, target, source, 0, scope.nbytes),
        "local into used pages": partial(read, local, exports[0], runs),
        "plain sockets": partial(receive_plainly, plain, target, scope),
        "tcp": partial(read, tcp, exports[1], runs),
        "local, small runs": partial(read, local, exports[0], scattered),
        "tcp, small runs": partial(read, tcp, exports[1], scattered),
    }
    return took | {(name, 0): seconds(action) for name, action in actions.items()}


def fastest(rounds: Sequence[Took]) -> dict[str, float]:
    """Return the seconds of each measurement: every window at its fastest."""
    best: dict[str, float] = {}
    for key in rounds[0]:
        best[key[0]] = best.get(key[0], 0.0) + min(took[key] for took in rounds)
    return best


def measure(scope: Scope, say: Callable[[str], None]) -> list[Figure]:
    """Return every figure."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=serve, args=(scope, child), daemon=True)
    process.start()
    exports, plain = parent.recv(), parent.recv()
    source, target = Memory(SOURCE_BYTES + BLOCK), Memory(scope.nbytes)
    ctypes.memset(source.address, 1, SOURCE_BYTES + BLOCK)
    rounds = []
    for number in range(scope.rounds + 1):
        say(f"round {number + 1} of {scope.rounds + 1}")
        rounds.append(one_round(scope, source, target, exports, plain))
    process.kill()
    process.join()
    return figures(fastest(rounds[1:]), scope)


def figures(best: dict[str, float], scope: Scope) -> list[Figure]:
    """Return the figures of the fastest rounds."""

    def rate(name: str, limit: str, aim: float | None) -> Figure:
        value, most = scope.nbytes / best[name] / 1e9, scope.nbytes / best[limit] / 1e9
        if aim is None:
            return Figure(name, value, "GB/s", limit, most)
        return Figure(name, value, "GB/s", limit, most, f"≥ {aim} of it", value >= aim * most)

    return [
        rate(LOCAL_FRESH, COPY_FRESH, 0.95),
        rate("local into used pages", "copy into used pages", None),
        rate("tcp", "plain sockets", 0.9),
        rate(TCP_FRESH, COPY_FRESH, None),
        Figure(f"local, {scope.small_runs:,} runs of 4 KiB", best["local, small runs"], "s"),
        Figure(f"tcp, {scope.small_runs:,} runs of 4 KiB", best["tcp, small runs"], "s"),
    ]


def main() -> None:
    """Measure what the arguments ask for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=Scope.nbytes)
    parser.add_argument("--tensors", type=int, default=Scope.tensors)
    parser.add_argument("--streams", type=int, default=Scope.streams)
    parser.add_argument("--rounds", type=int, default=Scope.rounds)
    given = parser.parse_args()
    scope = Scope(nbytes=given.bytes, tensors=given.tensors, streams=given.streams, rounds=given.rounds)
    console = Console(stderr=True)
    machine = Machine.this()
    found = measure(scope, console.print)
    Console().print(figure_table(f"transports, {scope.nbytes / 1e9:.2f} GB, {machine}", found))
    report = {
        "machine": asdict(machine),
        "scope": asdict(scope),
        "figures": [figure.fields() for figure in found],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
