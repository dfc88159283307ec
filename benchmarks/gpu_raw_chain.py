"""Copies along a chain of GPUs, with nothing around them: what a chain of loads is compared with.

Each process sees one GPU and maps the memory of the one before it, as `local` does, and copies all of it into its own
again and again: no registry, no lease, no digests, and nobody waits for anybody.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from benchmarks.gpu_connect import TOKEN, await_mapping, offered
from benchmarks.gpu_models import Role, role
from modelexpress.memory import CudaArena
from modelexpress.transport import LocalTransport, Run
from modelexpress.transport.device_reader import DeviceReader

NBYTES = 8 << 30
REPETITIONS = 8
PLACES = ("arena", "torch")
_RUN_BYTES = 512 << 20


def copy_rates(gpus: Sequence[int], place: str) -> tuple[float, float]:
    """Return the GB/s of one copy alone, and of the slowest copy while all links of the chain copy.

    Args:
        gpus: Of the source, of the one that reads from it, of the one that reads from that, …
        place: Where the memory is, of PLACES.
    """
    with ExitStack() as stack:
        nodes: list[Role] = []
        descriptor = ""
        for gpu in gpus:
            options = ["--place", place, "--above", descriptor]
            nodes.append(stack.enter_context(role("benchmarks.gpu_raw_chain", "node", str(gpu), options)))
            descriptor = nodes[-1].line().strip()
        return min(_together(nodes[1:2])), min(_together(nodes[1:]))


def _together(nodes: Sequence[Role]) -> list[float]:
    start = time.monotonic() + 0.1
    for node in nodes:
        node.tell(str(start))
    return [float(node.line()) for node in nodes]


def _serve(place: str, above: str) -> None:
    """Be one link: say where the memory is, and at each line what rate copying had."""
    tensor = _allocate(place)
    with offered({"block": tensor}) as own, _mapped(above) as reader:
        _say(own.descriptor)
        for line in sys.stdin:
            assert reader is not None, "the source reads from nobody"
            while time.monotonic() < float(line):
                pass
            _say(str(_rate(reader, tensor)))


def _allocate(place: str) -> torch.Tensor:
    if place == "arena":
        with CudaArena(0, NBYTES):
            return torch.empty(NBYTES, dtype=torch.uint8, device="cuda")
    return torch.empty(NBYTES, dtype=torch.uint8, device="cuda")


@contextmanager
def _mapped(descriptor: str) -> Iterator[DeviceReader | None]:
    if not descriptor:
        yield None
        return
    with LocalTransport() as transport, transport.open(descriptor.encode(), TOKEN, 0) as reader:
        assert isinstance(reader, DeviceReader)
        await_mapping(reader)
        yield reader


def _rate(reader: DeviceReader, tensor: torch.Tensor) -> float:
    runs = [Run(0, at, tensor.data_ptr() + at, _RUN_BYTES) for at in range(0, NBYTES, _RUN_BYTES)]
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        reader.read(runs).wait(60)
        seconds.append(time.perf_counter() - started)
    return NBYTES / statistics.median(seconds) / 1e9


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run one process of the chain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["node"], required=True)
    parser.add_argument("--place", choices=PLACES, required=True)
    parser.add_argument("--above", default="")
    given = parser.parse_args()
    _serve(given.place, given.above)


if __name__ == "__main__":
    main()
