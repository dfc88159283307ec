"""Timing of work that a device does: forwards one behind the other, marked by events, waited for at the end only."""

# mypy: untyped-calls-exclude=torch

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, step: Callable[[], object], count: int) -> float:
    """Return the time of `count` steps that are enqueued without a pause."""
    finish(device)
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(count):
            step()
        return time.perf_counter() - begun
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(count):
        step()
    last.record()
    finish(device)
    return float(first.elapsed_time(last)) / 1000


def together(value: Any) -> list[Any]:
    """Return the value of every rank of the world."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def meet() -> None:
    """Return when every rank of the world is here; nothing is asked of devices."""
    together(None)


def slowest(device: torch.device, step: Callable[[], object], count: int) -> float:
    """Return the time of one step of `count` on the rank that takes longest; all begin at once.

    A group's throughput is that of its slowest rank: the next batch of work comes for all.
    """
    finish(device)
    meet()
    return float(max(together(seconds(device, step, count)))) / count


def rounds(device: torch.device, steps: Sequence[Callable[[], object]], count: int, times: int) -> list[float]:
    """Return the median time of each of several steps, measured in turn, so that what changes meanwhile meets all."""
    found = [[slowest(device, step, count) for step in steps] for _ in range(times)]
    return [sorted(column)[times // 2] for column in zip(*found, strict=True)]
