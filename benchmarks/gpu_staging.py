"""Host memory of another process to a GPU: how many threads, and what buffers, the copies want.

Run `python -m benchmarks.gpu_staging`; it needs one GPU and 5 GiB of its memory and of the host's, and takes less than
a minute. It reads a memfd with the reader that `local` uses, and compares the constants of `transport/lane.py` and
`transport/device_reader.py` with a copy from page-locked memory. `--quick` takes only what is near the defaults.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.memory import memory_view
from modelexpress.memory.cuda_copy import Stream, allocate_device, allocate_pinned, free_device, free_pinned
from modelexpress.memory.cuda_driver import driver
from modelexpress.transport import Run, Transfer, device_reader, lane
from modelexpress.transport.device_mapping import DeviceMapping
from modelexpress.transport.device_reader import DeviceReader, Opening

DEVICE = 0
SOURCE_BYTES = 4 << 30
BATCH_BYTES = 512 << 20
WINDOW = 3
REPETITIONS = 3
MOST_PINNED_BYTES = 192 << 20
TARGET = 0.9
MIB = 1 << 20
_PINNED_COPY_BYTES = 1 << 30
_DEADLINE = 60.0


@dataclass(frozen=True)
class Ways:
    """Constants of `lane` and `device_reader`."""

    threads: int
    buffer_bytes: int
    buffers: int
    part_bytes: int

    @property
    def pinned_bytes(self) -> int:
        return self.threads * self.buffer_bytes * self.buffers

    def __str__(self) -> str:
        part = f"parts of {self.part_bytes // MIB} MiB"
        return f"{self.threads} threads, {self.buffers} × {self.buffer_bytes // MIB} MiB each, {part}"


def default() -> Ways:
    """Return what a reader does on this machine."""
    return Ways(lane.staging_lanes(), lane.STAGING_BYTES, lane.STAGING_BUFFERS, device_reader.STAGED_PART_BYTES)


def ways(cores: int, quick: bool) -> Iterator[Ways]:
    """Yield what is compared, the default first; nothing that takes too much page-locked memory."""
    usual = default()
    yield usual
    threads = (8, 12, 16) if quick else (4, 8, 12, 16, 20, 24)
    for count in [count for count in threads if count <= cores]:
        for buffer_bytes in (4 * MIB, 8 * MIB) if quick else (MIB, 2 * MIB, 4 * MIB, 8 * MIB):
            for buffers in (2, 3) if quick else (2, 3, 4):
                found = Ways(count, buffer_bytes, buffers, usual.part_bytes)
                if found.pinned_bytes <= MOST_PINNED_BYTES:
                    yield found
    for part_bytes in (8 * MIB, 32 * MIB, 64 * MIB):
        yield Ways(usual.threads, usual.buffer_bytes, usual.buffers, part_bytes)


def rate(file: int, destination: int, chosen: Ways) -> float:
    """Return the GB/s at which a reader copies the whole file, in batches as a pull asks for them."""
    lane.STAGING_LANES = chosen.threads
    lane.STAGING_BYTES, lane.STAGING_BUFFERS = chosen.buffer_bytes, chosen.buffers
    device_reader.STAGED_PART_BYTES = chosen.part_bytes
    lane.CORES_SHARE = 1.0
    here, there = socket.socketpair()
    batches = [
        [Run(0, start, destination + start, min(BATCH_BYTES, SOURCE_BYTES - start))]
        for start in range(0, SOURCE_BYTES, BATCH_BYTES)
    ]
    # The other end stays silent, as a source does; each reader owns what it is given.
    with there, _reader(here, os.dup(file)) as reader:
        _seconds(reader, batches)  # allocates buffers
        seconds = statistics.median(_seconds(reader, batches) for _ in range(REPETITIONS))
    _drop_lanes()
    return SOURCE_BYTES / seconds / 1e9


def _reader(sock: socket.socket, file: int) -> DeviceReader:
    mapping = DeviceMapping({}, DEVICE)
    opening = Opening(0.0, 0.0)
    return DeviceReader(sock, mapping, {0: file}, [SOURCE_BYTES], (), DEVICE, to_device=True, opening=opening)


def _seconds(reader: DeviceReader, batches: Sequence[Sequence[Run]]) -> float:
    started = time.perf_counter()
    transfers: list[Transfer] = []
    for number, batch in enumerate(batches):
        if number >= WINDOW:
            transfers[number - WINDOW].wait(_DEADLINE)
        transfers.append(reader.read(batch))
    for transfer in transfers:
        transfer.wait(_DEADLINE)
    return time.perf_counter() - started


def _drop_lanes() -> None:
    """Give the buffers back: a lane that is kept would keep their size."""
    with driver().on(DEVICE):
        for idle in lane._idle.pop(DEVICE, []):
            idle.close()


def filling(file: int, threads: int) -> float:
    """Return the GB/s at which threads read the file into ordinary buffers: what the cores and memory give."""
    size = 2 * MIB

    def fill(number: int) -> None:
        buffer = [bytearray(size)]
        for offset in range(number * size, SOURCE_BYTES, threads * size):
            os.preadv(file, buffer, offset)

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(fill, range(threads)))
        return SOURCE_BYTES / (time.perf_counter() - started) / 1e9


def pinned_copy(destination: int) -> float:
    """Return the GB/s of large driver copies from page-locked memory."""
    with driver().on(DEVICE), ExitStack() as undo:
        source = allocate_pinned(_PINNED_COPY_BYTES)
        undo.callback(free_pinned, source)
        stream, best = Stream(), 0.0
        undo.callback(stream.close)
        for _ in range(5):
            started = time.perf_counter()
            stream.copy(destination, source, _PINNED_COPY_BYTES)
            stream.finish()
            best = max(best, _PINNED_COPY_BYTES / (time.perf_counter() - started) / 1e9)
        return best


@contextmanager
def source() -> Iterator[int]:
    """Yield a file in memory with other bytes on every page."""
    file = os.memfd_create("staging")
    try:
        os.ftruncate(file, SOURCE_BYTES)
        block = os.urandom(64 * MIB)
        for offset in range(0, SOURCE_BYTES, len(block)):
            os.pwrite(file, block, offset)
        yield file
    finally:
        os.close(file)


def check(file: int, destination: int) -> None:
    """End the benchmark if the last bytes did not arrive."""
    with driver().on(DEVICE):
        pinned, stream = allocate_pinned(MIB), Stream()
        stream.copy(pinned, destination + SOURCE_BYTES - MIB, MIB)
        stream.finish()
        arrived = bytes(memory_view(pinned, MIB)) == os.pread(file, MIB, SOURCE_BYTES - MIB)
        stream.close()
        free_pinned(pinned)
    assert arrived, "other bytes arrived than were sent"


def measure(quick: bool) -> Iterator[Figure]:
    """Yield every figure."""
    cores = len(os.sched_getaffinity(0))
    with source() as file, ExitStack() as undo:
        with driver().on(DEVICE):
            destination = allocate_device(SOURCE_BYTES)
        undo.callback(_free, destination)
        limit = pinned_copy(destination)
        yield Figure("pinned copy, 1 GiB", limit, "GB/s")
        for threads in (1, 4, 8, 12, 16, 20, 24):
            if threads <= cores:
                yield Figure(f"preadv alone, {threads} threads", filling(file, threads), "GB/s")
        for number, chosen in enumerate(list(ways(cores, quick))):
            found = rate(file, destination, chosen)
            if not number:
                check(file, destination)
            name = f"{'default: ' if not number else ''}{chosen}"
            target, met = f"≥ {TARGET}", found >= TARGET * limit
            yield Figure(name, found, "GB/s", "pinned copy", limit, target, met)


def _free(address: int) -> None:
    with driver().on(DEVICE):
        free_device(address)


def main() -> None:
    """Measure, print each figure as it comes, then a table with the best at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what is near the defaults")
    given = parser.parse_args()
    figures = []
    for figure in measure(given.quick):
        print(f"{figure.name}: {figure.value:.3g} {figure.unit}", flush=True)
        figures.append(figure)
    Console(width=130).print(figure_table(f"host memory to device {DEVICE}, {Machine.this()}", figures))
    best = max((figure for figure in figures if figure.limit), key=lambda figure: figure.value)
    print(f"best: {best.name}")


if __name__ == "__main__":
    main()
