"""Loops that keep a GPU busy as inference does: one that is bound by arithmetic, one by memory."""

import time
from collections.abc import Callable

import torch

_TOGETHER = 16
"""Steps that are enqueued at once, so that the GPU does not wait for the interpreter."""

Step = Callable[[], object]


def products(device: str, *, tiny: bool) -> Step:
    """Return a product of two square matrices of bfloat16, 1.1 TFLOP."""
    size = 256 if tiny else 8192
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def additions(device: str, *, tiny: bool) -> Step:
    """Return an elementwise sum that reads 2 GiB and writes 1 GiB."""
    count = 1 << (20 if tiny else 29)
    left, right = (torch.ones(count, dtype=torch.bfloat16, device=device) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.add(left, right, out=result)


LOOPS: dict[str, Callable[..., Step]] = {"matrix products": products, "additions": additions}


def rate(step: Step, seconds: float, finish: Callable[[], object]) -> float:
    """Return how many steps are done a second.

    Args:
        step: Enqueues one.
        seconds: How long it is watched.
        finish: Waits until all that was enqueued is done.
    """
    for _ in range(3):
        step()
    finish()
    started, count = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < seconds:
        for _ in range(_TOGETHER):
            step()
        finish()
        count += _TOGETHER
    return count / took
