"""What a rank of a group does in the tests of experts shared between GPUs; all ranks do the same case at a time."""

import gc
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.dwdp.machines import machine_of
from modelexpress.errors import DeviceError, RankLost
from tests.support import dwdp_gpu_models as models
from tests.support.dwdp_gpu_machines import late_machine, pause_device

FORWARDS = 6
LOST_WITHIN = 30.0
Answer = dict[str, Any]


def config_of(options: Mapping[str, Any]) -> DwdpConfig:
    """Return the configuration that a case is given as L and S."""
    return DwdpConfig(
        dist.get_world_size(), options["held"], options["stride"], contention_opt=options.get("slices", False)
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of a model's parameters, as bytes: NaN equals NaN then."""
    return {name: value.detach().cpu().contiguous().view(torch.uint8) for name, value in model.named_parameters()}


def same(before: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    """Return whether a model's parameters are what they were."""
    after = state(model)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def equal(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Compare outputs with those of the same model with all experts resident: to the bit, without a pause between."""
    kind, config, rank = options["kind"], config_of(options), dist.get_rank()
    model = models.built(kind, device, options.get("chunks", 1))
    inputs = [models.fed(kind, device, 100 * rank + number) for number in range(FORWARDS)]
    expected = [models.called(model, given) for given in inputs]
    if options.get("cut"):
        models.cut(model, config.partition(models.EXPERTS).held(rank))
    before = state(model)
    with enable(model, config), _side_stream(device, options.get("side", False)):
        found = [models.called(model, given) for given in inputs]
        finish(device)
    right = [torch.equal(left, right) for left, right in zip(found, expected, strict=True)]
    return {"right": right, "restored": same(before, model), "finite": bool(expected[-1].isfinite().all())}


def ordering(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Compute with copies that spoil their destination and come late; with a wait left out, if one is named."""
    config, chance = config_of(options), random.Random(dist.get_rank())
    model = models.toy(device)
    inputs = [models.fed("toy", device, number) for number in range(4 * FORWARDS)]
    expected = [models.called(model, given) for given in inputs]
    if device.type == "cuda":
        models.pausing(model, partial(pause_device, chance))
    with enable(model, config, machine=late_machine(device, options.get("dropped"))):
        found = [models.called(model, given) for given in inputs]
        finish(device)
    return {"right": [torch.equal(left, right) for left, right in zip(found, expected, strict=True)]}


def broken_off(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Let a forward break off in the middle, with late copies under way, and compute right after it."""

    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    model, given = models.toy(device), models.fed("toy", device, 3)
    expected = models.called(model, given)
    with enable(model, config_of(options), machine=late_machine(device, None)):
        block = next(module for module in list(model.modules())[::-1] if isinstance(module, models.ToyBlock))
        hook = block.gate.register_forward_pre_hook(refuse)
        broken = 0
        try:
            models.called(model, given)
        except ZeroDivisionError:
            broken = 1
        hook.remove()
        found = models.called(model, given)
        finish(device)
    return {"right": [torch.equal(found, expected)], "broken": broken}


def cycles(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Set up and tear down ten times; tell what the machine had left after each, or torch has."""
    model, given, left = models.toy(device), models.fed("toy", device, 5), []
    for _ in range(10):
        with enable(model, config_of(options)):
            models.called(model, given)
        dist.barrier()  # what a peer still maps is not free yet
        left.append(_left(device) + _kept_by_torch(device))
        dist.barrier()
    return {"left": left, "descriptors": len(os.listdir("/proc/self/fd"))}


def memory(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Tell what this rank's part of a model takes, and what all experts are."""
    config = config_of(options)
    warm = models.toy(device)
    with enable(warm, config):  # loads kernels, opens contexts
        models.called(warm, models.fed("toy", device, 1))
    del warm
    dist.barrier()
    before = _left(device)
    model = models.toy(torch.device("cpu"), sizes=models.LARGE)
    experts = sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() >= 3)
    largest = max(sum(p.nbytes for p in block.parameters()) for block in model.modules() if _is_block(block))
    models.cut(model, config.partition(models.EXPERTS).held(dist.get_rank()))
    model.to(device)
    with enable(model, config):
        models.called(model, models.fed("toy", device, 2))
        taken = before - _left(device)
        dist.barrier()
    return {"taken": taken, "experts": experts, "slot": largest}


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, models.ToyExperts)


def killed(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Go on until the last rank, which kills itself while it computes, is missed; tell what is left."""
    model, given = models.toy(device), models.fed("toy", device, 4)
    before, begun, lost = state(model), time.monotonic(), ""
    try:
        with enable(model, config_of(options), deadline=10.0):
            while not lost and time.monotonic() < begun + LOST_WITHIN:
                models.called(model, given)
                if dist.get_rank() == dist.get_world_size() - 1:
                    os.kill(os.getpid(), signal.SIGKILL)
    except RankLost as error:
        lost = str(error)
    return {"lost": lost, "seconds": time.monotonic() - begun, "restored": same(before, model)}


def elsewhere(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Set up a model while another device is current: that is refused with the remedy."""
    model = models.toy(device)
    before, refused = state(model), ""
    try:
        with torch.cuda.device((device.index + 1) % torch.cuda.device_count()), enable(model, config_of(options)):
            pass
    except DeviceError as error:
        refused = str(error)
    return {"refused": refused, "restored": same(before, model)}


def timed(device: torch.device, options: Mapping[str, Any]) -> Answer:
    """Tell how long the device was kept busy between two timed events."""
    machine = machine_of(nn.Linear(1, 1, device=device))
    first, second, stream = machine.event(timed=True), machine.event(timed=True), machine.compute()
    stream.record(first)
    if device.type == "cuda":
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
    stream.record(second)
    stream.finish()
    seconds = machine.seconds(first, second)
    for event in (first, second):
        event.close()
    return {"seconds": seconds}


CASES: Mapping[str, Callable[[torch.device, Mapping[str, Any]], Answer]] = MappingProxyType(
    {case.__name__: case for case in (equal, ordering, broken_off, cycles, memory, killed, elsewhere, timed)}
)


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _side_stream(device: torch.device, wanted: bool) -> torch.cuda.StreamContext:
    if not wanted or device.type == "cpu":
        return torch.cuda.stream(None)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def _left(device: torch.device) -> int:
    """Return free memory of the device; on the host what is mapped of shared memory, negative: more is less."""
    gc.collect()
    if device.type == "cpu":
        maps = Path("/proc/self/maps").read_text().splitlines()
        return -sum(_length(line) for line in maps if "modelexpress-vmm" in line)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def _kept_by_torch(device: torch.device) -> int:
    """Return what torch's allocator has of the device: parameters are in blocks of its own choice after each time."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _length(line: str) -> int:
    start, _, end = line.split()[0].partition("-")
    return int(end, 16) - int(start, 16)
