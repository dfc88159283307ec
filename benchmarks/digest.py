"""How fast chunks are digested, next to what the memory of this machine can do.

Run `python benchmarks/digest.py`; it takes some fifteen seconds and writes benchmarks/results/digest.json.
Everything runs on one thread. GB are 10^9 bytes.
"""

import ctypes
import json
import mmap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.transfer import digest_numpy
from modelexpress.transfer.digest import (
    DIGEST_ALGORITHM,
    copy_digest_many,
    digest_many,
    implementation,
)

RESULTS = Path(__file__).parent / "results" / "digest.json"
MEMORY_BYTES = 256 * 1024**2  # far beyond any cache
CACHE_BYTES = 256 * 1024
ROUNDS = 7
FRESH = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # as allocators ask the kernel for memory

Bytes = npt.NDArray[np.uint8]
Copy = Callable[[Bytes, Bytes], object]


def column(*numbers: int) -> npt.NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


def best_rate(action: Callable[[], object], nbytes: int) -> float:
    """GB/s of the fastest of some rounds: noise only ever slows a round down."""
    return nbytes / min(seconds(action) for _ in range(ROUNDS)) / 1e9


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_rate(data: Bytes) -> float:
    """Reading bandwidth: the best of numpy's vectorised reductions."""
    words = data.view(np.uint64)
    return max(best_rate(reduce, data.size) for reduce in (words.max, words.sum, data.max))


def digest_rate(data: Bytes, repetitions: int) -> float:
    addresses = np.full(repetitions, data.ctypes.data, dtype=np.uint64)
    lengths = np.full(repetitions, data.size, dtype=np.uint64)
    return best_rate(lambda: digest_many(addresses, lengths), data.size * repetitions)


def warm_rate(copy: Copy, source: Bytes) -> float:
    destination = np.ones_like(source)
    return best_rate(lambda: copy(destination, source), source.size)


def fresh_rate(copy: Copy, source: Bytes) -> float:
    """Rate of a copy into pages that the kernel hands out, and clears, during the copy."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        destination = np.frombuffer(mmap.mmap(-1, source.size, flags=FRESH), dtype=np.uint8)
        start = time.perf_counter()
        copy(destination, source)
        fastest = min(fastest, time.perf_counter() - start)
    return source.size / fastest / 1e9


def memcpy(destination: Bytes, source: Bytes) -> None:
    ctypes.memmove(destination.ctypes.data, source.ctypes.data, source.size)


def fused(destination: Bytes, source: Bytes) -> None:
    copy_digest_many(column(destination.ctypes.data), column(source.ctypes.data), column(source.size))


def one_after_the_other(destination: Bytes, source: Bytes) -> None:
    memcpy(destination, source)
    digest_many(column(destination.ctypes.data), column(source.size))


def measure() -> list[Figure]:
    source = np.random.default_rng(0).integers(0, 256, MEMORY_BYTES, dtype=np.uint8)
    reading, warm, fresh = read_rate(source), warm_rate(memcpy, source), fresh_rate(memcpy, source)

    def compared(name: str, rate: float, limit: str, limit_rate: float) -> Figure:
        return Figure(name, rate, "GB/s", limit, limit_rate)

    return [
        Figure("read memory", reading, "GB/s"),
        Figure("memcpy to warm pages", warm, "GB/s"),
        Figure("memcpy to fresh pages", fresh, "GB/s"),
        compared("digest from memory", digest_rate(source, 1), "read memory", reading),
        Figure("digest from cache", digest_rate(source[:CACHE_BYTES], MEMORY_BYTES // CACHE_BYTES), "GB/s"),
        compared(
            "digest in numpy",
            best_rate(lambda: digest_numpy.digest(source.data), source.size),
            "read memory",
            reading,
        ),
        compared("copy and digest, warm", warm_rate(fused, source), "memcpy to warm pages", warm),
        compared("copy, then digest, warm", warm_rate(one_after_the_other, source), "memcpy to warm pages", warm),
        compared("copy and digest, fresh", fresh_rate(fused, source), "memcpy to fresh pages", fresh),
        compared(
            "copy, then digest, fresh",
            fresh_rate(one_after_the_other, source),
            "memcpy to fresh pages",
            fresh,
        ),
    ]


def main() -> None:
    machine = Machine.this()
    figures = measure()
    by = f"{DIGEST_ALGORITHM} in {implementation().name}, one thread, {MEMORY_BYTES >> 20} MiB"
    Console().print(figure_table(f"{by}, on {machine}", figures))
    report = {
        "algorithm": DIGEST_ALGORITHM,
        "implementation": implementation().name,
        "machine": asdict(machine),
        "bytes": MEMORY_BYTES,
        "figures": [figure.fields() for figure in figures],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
