"""One rank of a broadcast by torch.distributed: NCCL between GPUs, gloo where the logic is tried on the host."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from benchmarks.beside.children import say
from benchmarks.beside.tensors import (
    REPETITIONS,
    Tensors,
    allocate,
    allocate_flat,
    arrived,
    chosen_shapes,
    common_options,
    fill,
    finish,
    seconds,
    warm_up,
)
from benchmarks.shapes import Shapes

_BLOCK_BYTES = 6 << 30
_TINY_BLOCK_BYTES = 6 << 20
_TIMEOUT = timedelta(seconds=120)


def main() -> None:
    """Take part in every broadcast and say what each repetition took here."""
    parser = common_options()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--meet", required=True, help="a file that does not exist yet")
    given = parser.parse_args()
    device, shapes = given.device, chosen_shapes(given)
    warm_up(device)
    started = time.perf_counter()
    _join(given.rank, given.world, given.meet, device)
    start = time.perf_counter() - started
    block_bytes = _TINY_BLOCK_BYTES if given.tiny else _BLOCK_BYTES
    block = _block(block_bytes, given.rank, device)
    each = _each(shapes, given.rank, device)
    flat = _flat(shapes, given.rank, device)
    ways = {"block": block, "each": each, "flat": flat}
    found = {name: way.seconds for name, way in ways.items()}
    say(start=start, block_bytes=block_bytes, right=all(way.right for way in ways.values()), **found)
    dist.destroy_process_group()


@dataclass(frozen=True)
class Found:
    """What each repetition took, and whether the right bytes arrived."""

    seconds: list[float]
    right: bool


def _block(nbytes: int, rank: int, device: str) -> Found:
    """Broadcast one block."""
    block = torch.full((nbytes,), rank, dtype=torch.uint8, device=device)
    found = _repeat(lambda: dist.broadcast(block, 0), device)
    return Found(found, not int(block[-1]))


def _each(shapes: Shapes, rank: int, device: str) -> Found:
    """Broadcast tensor by tensor."""
    tensors = allocate(shapes, device)
    _prepare(tensors, rank)
    return Found(_repeat(lambda: _broadcast_each(list(tensors.values())), device), arrived(tensors))


def _flat(shapes: Shapes, rank: int, device: str) -> Found:
    """Broadcast all tensors as one buffer."""
    flat, tensors = allocate_flat(shapes, device)
    _prepare(tensors, rank)
    return Found(_repeat(lambda: dist.broadcast(flat, 0), device), arrived(tensors))


def _join(rank: int, world: int, meet: str, device: str) -> None:
    """Meet the others, and open what connects them."""
    backend = "nccl" if device == "cuda" else "gloo"
    place = torch.device("cuda", 0) if device == "cuda" else None
    dist.init_process_group(
        backend, init_method=f"file://{meet}", rank=rank, world_size=world, timeout=_TIMEOUT, device_id=place
    )
    dist.broadcast(torch.zeros(1, device=device), 0)
    finish(device)


def _prepare(tensors: Tensors, rank: int) -> None:
    if rank == 0:
        fill(tensors)
        return
    for tensor in tensors.values():
        tensor.zero_()


def _broadcast_each(tensors: Sequence[torch.Tensor]) -> None:
    """Enqueue a broadcast of every tensor, then wait for all."""
    under_way = [dist.broadcast(tensor, 0, async_op=True) for tensor in tensors]
    for work in under_way:
        assert work is not None
        work.wait()


def _repeat(action: Callable[[], object], device: str) -> list[float]:
    """Return the seconds of each repetition, all ranks starting together; the first one is more than the others."""
    found = []
    for _ in range(REPETITIONS + 1):
        finish(device)
        dist.barrier()
        found.append(seconds(action, device))
    return found


if __name__ == "__main__":
    main()
