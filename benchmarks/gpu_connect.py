"""Where the time goes between a lease and the first byte, GPU to GPU: each step of opening and closing a source.

`python -m benchmarks.gpu_load` prints these steps beside what a load takes. Run by itself, with
`python -m benchmarks.gpu_connect --set experts`, this compares numbers of threads that map and of streams that copy,
and many copies in one call with one by one. It needs two GPUs of one host.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_models import allocate, role, shapes_of
from benchmarks.shapes import SETS
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.memory import cuda_copy
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_regions import regions_under
from modelexpress.transport import LocalTransport, Run, device_mapping, device_reader
from modelexpress.transport.device_reader import DeviceReader
from modelexpress.transport.local_descriptor import LocalDescriptor
from modelexpress.transport.unmapping import settled

TOKEN = "benchmark"
REPETITIONS = 5
_DEADLINE = 60.0
_SCRATCH_BYTES = 2 << 30
_RUN_BYTES = 512 << 20


@dataclass(frozen=True)
class Offered:
    """An export beside the publication: its descriptor, and how many seconds the source took to make it."""

    descriptor: str
    find_regions: float
    share: float


@dataclass(frozen=True)
class Steps:
    """Seconds of one opening and closing; `greeting` is all of it but the two steps that follow.

    `map_all` is counted from the first mapping on and runs beside copies, `unmap` after the load.
    """

    greeting: float
    handover: float
    map_first: float
    map_all: float
    close: float
    unmap: float


@contextlib.contextmanager
def offered(model: Mapping[str, torch.Tensor]) -> Iterator[Offered]:
    """Offer the memory under a model to this benchmark until the block ends."""
    with LocalTransport() as transport:
        started = time.perf_counter()
        regions = regions_under((tensor.data_ptr(), tensor.nbytes) for tensor in model.values())
        found = time.perf_counter()
        export = transport.export(regions)
        shared = time.perf_counter()
        export.grant(TOKEN)
        yield Offered(export.descriptor.decode(), found - started, shared - found)


def steps(descriptor: str, device: int = 0) -> Steps:
    """Open a source, wait until everything is mapped, and close it."""
    with LocalTransport() as transport:
        started = time.perf_counter()
        reader = transport.open(descriptor.encode(), TOKEN, device)
        opened = time.perf_counter() - started
        assert isinstance(reader, DeviceReader)
        await_mapping(reader)
        closing = time.perf_counter()
        reader.close()
        closed = time.perf_counter()
        assert settled(_DEADLINE)
        unmapped = time.perf_counter()
    opening = reader.opening
    return Steps(
        greeting=opened - opening.handover - opening.map_first,
        handover=opening.handover,
        map_first=opening.map_first,
        map_all=reader.mapping.seconds or 0.0,
        close=closed - closing,
        unmap=unmapped - closed,
    )


def median_steps(descriptor: str, device: int = 0) -> Steps:
    """Return the median of each step over some repetitions; the first one, which makes contexts, does not count."""
    steps(descriptor, device)
    runs = [steps(descriptor, device) for _ in range(REPETITIONS)]
    return Steps(*(statistics.median(getattr(run, field.name) for run in runs) for field in fields(Steps)))


def step_figures(title: str, source: Offered, found: Steps) -> list[Figure]:
    """Return the steps of both sides as lines of a table."""
    lines = {"source: find regions": source.find_regions, "source: share": source.share}
    lines |= {f"open: {name.replace('_', ' ')}": seconds for name, seconds in asdict(found).items()}
    return [Figure(f"{title}: {name}", 1e3 * seconds, "ms") for name, seconds in lines.items()]


def copy_rate(descriptor: str, device: int = 0) -> float:
    """Return the GB/s at which every region is copied into a scratch buffer, with everything mapped before."""
    sizes = LocalDescriptor.parse(descriptor.encode()).region_bytes
    with driver().on(device):
        scratch = cuda_copy.allocate_device(_SCRATCH_BYTES)
    try:
        runs, best = list(_runs(sizes, scratch)), 0.0
        with LocalTransport() as transport, transport.open(descriptor.encode(), TOKEN, device) as reader:
            assert isinstance(reader, DeviceReader)
            await_mapping(reader)
            for _ in range(REPETITIONS):
                started = time.perf_counter()
                reader.read(runs).wait(_DEADLINE)
                best = max(best, sum(sizes) / (time.perf_counter() - started) / 1e9)
        assert settled(_DEADLINE)
    finally:
        with driver().on(device):
            cuda_copy.free_device(scratch)
    return best


def _runs(sizes: tuple[int, ...], scratch: int) -> Iterator[Run]:
    """Yield runs that cover every region; their places in the scratch buffer are used again and again."""
    place = 0
    for region, size in enumerate(sizes):
        for offset in range(0, size, _RUN_BYTES):
            nbytes = min(_RUN_BYTES, size - offset)
            place = 0 if place + nbytes > _SCRATCH_BYTES else place
            yield Run(region, offset, scratch + place, nbytes)
            place += nbytes


def await_mapping(reader: DeviceReader) -> None:
    """Return when everything is mapped."""
    deadline = time.monotonic() + _DEADLINE
    while reader.mapping.seconds is None:
        assert time.monotonic() < deadline, "the source was not mapped in time"
        time.sleep(0.0002)


def compare(descriptor: str) -> list[Figure]:
    """Return what the constants of mapping and copying are worth on this machine."""
    figures = []
    for threads in (1, 2, 4, 8):
        device_mapping.MAPPING_THREADS = threads
        found = median_steps(descriptor)
        figures.append(Figure(f"map all, {threads} threads", 1e3 * found.map_all, "ms"))
        figures.append(Figure(f"unmap, after {threads} threads", 1e3 * found.unmap, "ms"))
    for call in ("", cuda_copy.BATCH_CALL):
        cuda_copy.BATCH_CALL = call
        for streams in (1, 2, 3, 4):
            device_reader.STREAMS = streams
            how = "in batches" if call else "one by one"
            figures.append(Figure(f"copy {how}, {streams} streams", copy_rate(descriptor), "GB/s"))
    return figures


def _serve(chosen: str, arena: bool) -> None:
    with offered(allocate(shapes_of(chosen), arena=arena)) as export:
        sys.stdout.write(json.dumps(asdict(export)) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["source", "target"])
    parser.add_argument("--descriptor", default="")
    parser.add_argument("--set", dest="chosen", choices=list(SETS), default="experts")
    parser.add_argument("--arena", action="store_true")
    given = parser.parse_args()
    if given.role == "source":
        _serve(given.chosen, given.arena)
        return
    if given.role == "target":
        sys.stdout.write(json.dumps([asdict(figure) for figure in compare(sys.stdin.readline().strip())]) + "\n")
        return
    options = ["--set", given.chosen] + (["--arena"] if given.arena else [])
    with role("benchmarks.gpu_connect", "source", "0", options) as source:
        export: dict[str, Any] = json.loads(source.line())
        with role("benchmarks.gpu_connect", "target", "1", options) as target:
            target.tell(export["descriptor"])
            figures = [Figure(**fields) for fields in json.loads(target.line())]
    figures += [Figure(f"source: {name}", 1e3 * export[name], "ms") for name in ("find_regions", "share")]
    Console(width=120).print(
        figure_table(f"{given.chosen}, {'arena' if given.arena else 'as torch allocates'}", figures)
    )


if __name__ == "__main__":
    main()
