"""The tensors that every way moves: allocated as a model is, filled so that a receiver can check them.

Nothing of this package is imported here: other packages' processes use it, too.
"""

import argparse
import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.shapes import SETS, Shapes

REPETITIONS = 5
_TINY = 32
"""What each dimension is divided by where only the logic is tried."""
_ALIGNMENT = 256

Tensors = dict[str, torch.Tensor]


def common_options(*, add_help: bool = True) -> argparse.ArgumentParser:
    """Return a parser of what every process is told."""
    parser = argparse.ArgumentParser(add_help=add_help)
    parser.add_argument("--set", dest="chosen", choices=list(SETS), default="dense")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser


def chosen_shapes(given: argparse.Namespace) -> Shapes:
    """Return the shapes that the options ask for."""
    shapes = SETS[given.chosen]
    if not given.tiny:
        return shapes
    return {name: tuple(max(size // _TINY, 1) for size in shape) for name, shape in shapes.items()}


def total_bytes(shapes: Shapes) -> int:
    """Return the bytes of all tensors."""
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())


def allocate(shapes: Shapes, device: str) -> Tensors:
    """Return empty bfloat16 tensors, each from torch's allocator."""
    return {name: torch.empty(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes.items()}


def allocate_flat(shapes: Shapes, device: str) -> tuple[torch.Tensor, Tensors]:
    """Return one buffer, and tensors one behind the other in it."""
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    room = {name: -(-count // _ALIGNMENT) * _ALIGNMENT for name, count in counts.items()}
    flat = torch.empty(sum(room.values()), dtype=torch.bfloat16, device=device)
    tensors, start = {}, 0
    for name, shape in shapes.items():
        tensors[name] = flat[start : start + counts[name]].view(shape)
        start += room[name]
    return flat, tensors


def fill(tensors: Mapping[str, torch.Tensor]) -> None:
    """Write random bits, the same ones in every process with such a device."""
    for number, tensor in enumerate(tensors.values()):
        _fill(tensor, number)


def arrived(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the first, a middle and the last tensor hold what `fill` wrote."""
    listed = list(tensors.values())
    for number in {0, len(listed) // 2, len(listed) - 1}:
        expected = torch.empty_like(listed[number])
        _fill(expected, number)
        if not torch.equal(listed[number].view(torch.int16), expected.view(torch.int16)):
            return False
    return True


def _fill(tensor: torch.Tensor, number: int) -> None:
    generator = torch.Generator(tensor.device).manual_seed(number)
    tensor.view(torch.int16).random_(-(1 << 15), 1 << 15, generator=generator)


def finish(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def warm_up(device: str) -> None:
    """Open the device's context: no way shall have that in its time."""
    torch.ones(8, device=device).sum().item()


def seconds(action: Callable[[], object], device: str) -> float:
    """Return how long an action takes, until the device has done it."""
    finish(device)
    started = time.perf_counter()
    action()
    finish(device)
    return time.perf_counter() - started
