"""What the GPU benchmarks have in common: models to move, and processes that see one device each."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.shapes import SETS, Shapes
from modelexpress.memory import CudaArena

_TORCH_UNIT = 512


def shapes_of(chosen: str) -> Shapes:
    """Return a set of shapes by name."""
    return SETS[chosen]


def allocate(shapes: Shapes, *, arena: bool) -> dict[str, torch.Tensor]:
    """Return empty bfloat16 tensors on the current device: in an arena, or as torch allocates."""
    if not arena:
        return _empty(shapes)
    with CudaArena(torch.cuda.current_device(), sum(map(_bytes, shapes.values()))):
        return _empty(shapes)


def _empty(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, dtype=torch.bfloat16, device="cuda") for name, shape in shapes.items()}


def _bytes(shape: tuple[int, ...]) -> int:
    return -(-2 * torch.Size(shape).numel() // _TORCH_UNIT) * _TORCH_UNIT


def fill(model: dict[str, torch.Tensor]) -> None:
    """Fill a model on a device with random bytes."""
    for tensor in model.values():
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15)
    torch.cuda.synchronize()


class Role:
    """A process of a benchmark; it ends when its standard input does."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.may_fail = False

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"a process of the benchmark ended with status {self._process.wait()}: see above"
        return line

    def wait(self, timeout: float) -> None:
        """Return when it has ended, in whatever way: one that kills itself is no failure of the benchmark.

        Raises:
            TimeoutExpired: It goes on after so many seconds.
        """
        self.may_fail = True
        self._process.wait(timeout)

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@contextmanager
def role(module: str, name: str, device: str, options: Sequence[str]) -> Iterator[Role]:
    """Run a module in a role, with one device visible to it, until the block ends."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device, "MX_WORKER_GRPC_PORT": "0"}
    command = [sys.executable, "-m", module, "--role", name, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    started = Role(process)
    try:
        yield started
    finally:
        process.communicate()
    assert started.may_fail or process.returncode == 0, (
        f"role {name} of {module} ended with status {process.returncode}"
    )
