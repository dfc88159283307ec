"""How fast a GPU digests its own memory, next to how fast it can read and copy it.

Run `python -m benchmarks.digest_gpu`; it takes half a minute, needs 80 GB of GPU memory, and writes
benchmarks/results/digest_gpu.json. GB are 10^9 bytes. `--shapes` also compares ways to divide the kernel's work.
"""

# mypy: disallow-untyped-decorators=False, untyped-calls-exclude=torch

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.transfer.digest import Column, digest
from modelexpress.transfer.digest_kernel import DEFAULT_SHAPE, Shape, launch
from modelexpress.transfer.digest_numpy import LINE_WORDS, keys
from modelexpress.transfer.digest_tiles import cut_tiles
from modelexpress.transfer.digest_triton import DeviceDigests, PendingDigests

RESULTS = Path(__file__).parent / "results" / "digest_gpu.json"
MIB = 1 << 20
GIB = 1 << 30
TARGET = 1500.0
ROUNDS, LAUNCHES = 5, 4
READ_WORDS = 4096  # of a program of the plain reading kernel
SLOTS = tl.constexpr(1024)  # for its sums, so that programs do not queue for one
SHAPES = [
    *(replace(DEFAULT_SHAPE, tile=tile) for tile in (64, 128, 512, 1024)),
    Shape(tile=256, lines=32, lanes=8, warps=8),
    Shape(tile=256, lines=32, lanes=4, warps=4),
    Shape(tile=256, lines=8, lanes=16, warps=4),
    *(replace(DEFAULT_SHAPE, programs=programs) for programs in (16, 33, 66, 132, 264, 528)),
]
FIRST_USE = (
    "import time, torch; torch.zeros(1, device='cuda')\n"
    "from modelexpress.transfer.digest_triton import DeviceDigests\n"
    "start = time.perf_counter(); DeviceDigests(0); print(time.perf_counter() - start)"
)


@dataclass(frozen=True)
class Ranges:
    """Equal ranges side by side, `start` bytes behind an aligned address."""

    name: str
    count: int
    nbytes: int
    start: int = 0

    def addresses(self, memory: torch.Tensor) -> Column:
        first = memory.data_ptr() + self.start
        return np.arange(self.count, dtype=np.uint64) * np.uint64(self.nbytes) + np.uint64(first)

    def lengths(self) -> Column:
        return np.full(self.count, self.nbytes, np.uint64)

    @property
    def total(self) -> int:
        return self.count * self.nbytes


BATCH = Ranges("one batch, 512 MiB in ranges of 64 MiB", 8, 64 * MIB)
LARGE = Ranges("16 GiB in ranges of 64 MiB", 256, 64 * MIB)
MANY = Ranges("18,867 ranges of 3 MiB", 18_867, 3 * MIB)
SMALL = Ranges("100,000 ranges of 20,000 bytes", 100_000, 20_000)
UNALIGNED = Ranges("16 GiB in ranges of 64 MiB, at odd addresses", 256, 64 * MIB, start=1)


@triton.jit
def add_words(words: tl.tensor, sums: tl.tensor, count: tl.constexpr) -> None:
    """The limit: reads words and does as little with them as possible."""
    first = tl.program_id(0).to(tl.int64) * count
    tl.atomic_add(sums + tl.program_id(0) % SLOTS, tl.sum(tl.load(words + first + tl.arange(0, count))), sem="relaxed")


def device_seconds(action: Callable[[], object]) -> float:
    """Median time on the device of one of several actions in a row."""
    action()
    return statistics.median(_seconds_of_row(action) for _ in range(ROUNDS))


def _seconds_of_row(action: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(LAUNCHES):
        action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / LAUNCHES


def host_seconds(action: Callable[[], object]) -> float:
    """Median time that an action holds the host."""

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(ROUNDS))


def kernel_rate(memory: torch.Tensor, ranges: Ranges, shape: Shape) -> float:
    """GB/s of the kernel alone, its tables already there."""
    tiles = cut_tiles(ranges.addresses(memory), ranges.lengths(), shape.tile)
    table, owners = torch.from_numpy(tiles.ranges).cuda(), torch.from_numpy(tiles.owners).cuda()
    line_keys = torch.from_numpy(keys(0, LINE_WORDS).view(np.int64)).cuda()
    sums = torch.zeros((ranges.count, 2), dtype=torch.int64, device="cuda")
    count = len(tiles.owners)
    return ranges.total / device_seconds(lambda: launch(shape, count, table, owners, line_keys, sums)) / 1e9


def limits(memory: torch.Tensor) -> dict[str, float]:
    """GB/s of reading, and of reading plus writing, on this device."""
    words = memory[: 16 * GIB].view(torch.int64)
    sums = torch.zeros(SLOTS.value, dtype=torch.int64, device="cuda")
    read = add_words[(words.numel() // READ_WORDS,)]
    target = torch.empty(8 * GIB, dtype=torch.uint8, device="cuda")
    return {
        "reading, torch.sum": words.nbytes / device_seconds(words.sum) / 1e9,
        "reading, a plain kernel": words.nbytes / device_seconds(lambda: read(words, sums, READ_WORDS)) / 1e9,
        "copying, read and written": 2 * target.nbytes / device_seconds(lambda: target.copy_(memory[: 8 * GIB])) / 1e9,
    }


def first_use_seconds() -> tuple[float, float]:
    """Seconds until a process can digest: with nothing compiled before, and with Triton's cache."""
    with tempfile.TemporaryDirectory(prefix="mx-triton-") as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache}
        command = [sys.executable, "-c", FIRST_USE]
        empty, full = (float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2))
    return empty, full


def check(memory: torch.Tensor, digests: DeviceDigests, ranges: Ranges) -> None:
    """End the benchmark if the last range has another digest on the host."""
    found = digests.enqueue(ranges.addresses(memory), ranges.lengths()).result()
    first = ranges.start + (ranges.count - 1) * ranges.nbytes
    expected = digest(memory[first : first + ranges.nbytes].cpu().numpy().data)
    if found[-1] != expected or len(np.unique(found)) != ranges.count:
        raise SystemExit(f"wrong digests of {ranges.name}")


def whole_calls(memory: torch.Tensor, digests: DeviceDigests, ranges: Ranges) -> Iterator[Figure]:
    """Yield what a caller sees: tables, the kernel that reads them, and the digests back on the host."""
    addresses, lengths = ranges.addresses(memory), ranges.lengths()
    table = host_seconds(lambda: cut_tiles(addresses, lengths, DEFAULT_SHAPE.tile))
    held: list[PendingDigests] = []  # what nobody waits for keeps its memory
    enqueue = host_seconds(lambda: held.append(digests.enqueue(addresses, lengths)))
    for pending in held:
        pending.result()
    whole = host_seconds(lambda: digests.enqueue(addresses, lengths).result())
    yield Figure(f"{ranges.name}: tables on the host", table * 1e3, "ms")
    yield Figure(f"{ranges.name}: enqueue returns after", enqueue * 1e3, "ms")
    yield Figure(f"{ranges.name}: digests on the host", ranges.total / whole / 1e9, "GB/s")


def measure(shapes: bool) -> Iterator[Figure]:
    """Yield every figure."""
    empty, full = first_use_seconds()
    memory = torch.empty(MANY.total + MIB, dtype=torch.uint8, device="cuda")
    memory.view(torch.int64).random_()  # zeros may run faster than weights
    most = limits(memory)
    yield from (Figure(name, rate, "GB/s") for name, rate in most.items())
    reading = max(rate for name, rate in most.items() if name.startswith("reading"))
    digests = DeviceDigests(0)
    for ranges in (LARGE, MANY, SMALL, UNALIGNED):
        check(memory, digests, ranges)
        rate = kernel_rate(memory, ranges, DEFAULT_SHAPE)
        aim: dict[str, Any] = (
            {"target": f"≥ {TARGET:.0f} GB/s", "met": rate >= TARGET} if ranges in (LARGE, MANY) else {}
        )
        yield Figure(f"kernel, {ranges.name}", rate, "GB/s", "reading", reading, **aim)
    for ranges in (BATCH, LARGE, MANY):
        yield from whole_calls(memory, digests, ranges)
    yield Figure("first use, nothing compiled before", empty, "s")
    yield Figure("first use, from Triton's cache", full, "s")
    for shape in SHAPES if shapes else ():
        yield Figure(f"kernel, {LARGE.name}, {shape}", kernel_rate(memory, LARGE, shape), "GB/s", "reading", reading)


def device() -> dict[str, Any]:
    """What the figures were measured with, beside the machine."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "device_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "shape": asdict(DEFAULT_SHAPE),
    }


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", action="store_true", help="compare ways to divide the kernel's work")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    machine = Machine.this()
    figures = list(measure(given.shapes))
    Console(width=170).print(figure_table(f"digests on {device()['device']}, {machine}", figures))
    report = {"machine": {**asdict(machine), **device()}, "figures": [figure.fields() for figure in figures]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
