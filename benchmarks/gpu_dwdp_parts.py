"""The parts of the benchmark of shared experts, as each rank runs them; all ranks return the same."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu_dwdp_clock import finish, meet, rounds, seconds, slowest, together
from benchmarks.gpu_dwdp_model import Block, Layer, Model, Shape, Trunk, model, trunk
from benchmarks.gpu_dwdp_parallel import ParallelExperts
from benchmarks.gpu_dwdp_routing import tables
from modelexpress.dwdp import DwdpConfig, DwdpManager, enable
from modelexpress.dwdp.cuda_machine import CudaStream
from modelexpress.dwdp.host_machine import HostStream
from modelexpress.dwdp.streams import Stream
from modelexpress.memory.cuda_copy import BATCH_CALL
from modelexpress.memory.cuda_driver import driver

VARIATION = 0.2
PASSES = 3
Found = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a rank was told.

    Args:
        shape: Of the model.
        device: This rank's.
        tokens: Of a rank, for each point of a curve.
        rounds: How often each is measured.
        theirs: Where the sources of another implementation are.
    """

    shape: Shape
    device: torch.device
    tokens: Sequence[int]
    rounds: int
    theirs: str

    def hidden(self, tokens: int) -> torch.Tensor:
        """Return what a model is called with, which differs from rank to rank."""
        generator = torch.Generator(self.device).manual_seed(50 + dist.get_rank())
        return torch.randn(tokens, self.shape.hidden, dtype=torch.bfloat16, device=self.device, generator=generator)

    def tables(self, tokens: int, variation: float = 0.0) -> tuple[Sequence[torch.Tensor], float]:
        """Return a routing; ranks for its variation are those of the world."""
        shape = self.shape
        return tables(
            tokens, shape.experts, shape.top_k, dist.get_world_size(), variation, dist.get_rank(), self.device
        )


@dataclass(frozen=True)
class Sharing:
    """A model whose experts are shared."""

    model: Model
    manager: DwdpManager
    expert_bytes: int

    def fetch(self) -> None:
        """Fetch all layers, and compute nothing."""
        for number, layer in enumerate(self.manager.layers):
            self.manager.wait_and_bind(layer.users[0], number)
            self.manager.record_compute_and_prefetch_next(number)


@contextmanager
def sharing(task: Task, common: Trunk, config: DwdpConfig) -> Iterator[Sharing]:
    """Build a model with this rank's experts only, and share them."""
    before = _free(task.device)
    place = config.place(dist.get_rank(), dist.get_world_size())
    own = model(task.shape, common, config.partition(task.shape.experts).held(place.rank))
    with enable(own, config) as manager:
        yield Sharing(own, manager, before - _free(task.device))


def limit(task: Task) -> Found:
    """Measure one large copy from one device to another, while nothing else runs."""
    return {"peer_copy": together(_peer_copy(task.device) if dist.get_rank() == 0 else 0.0)[0]}


def prefetch(task: Task) -> Found:
    """Fetch and compute nothing: all ranks at once, then one alone; what that takes of memory and of the host."""
    config = _config(task)
    common = trunk(task.shape, task.device)
    with sharing(task, common, config) as shared:
        shared.fetch()
        times = [slowest(task.device, shared.fetch, PASSES) for _ in range(task.rounds)]
        alone = []
        for rank in range(dist.get_world_size()):
            meet()
            if rank == dist.get_rank():
                alone = [seconds(task.device, shared.fetch, PASSES) / PASSES for _ in range(task.rounds)]
        host = _host(task, shared)
        taken = shared.expert_bytes
        refused = _refused(task, shared)
    remote = _remote_bytes(task.shape, config)
    whole = task.shape.layers * task.shape.experts * task.shape.expert_bytes
    return {
        "remote_bytes": remote,
        "rate": remote / median(times) / 1e9,
        "best_rate": remote / min(times) / 1e9,
        "alone_rate": min(together(remote / median(alone) / 1e9)),
        "host_us": max(together(host)),
        "batches_refused": any(together(refused)),
        "expert_bytes": max(together(taken)),
        "all_bytes": whole,
        "own_bytes": whole * config.num_experts_per_worker // task.shape.experts,
        "slot_bytes": remote // task.shape.layers,
    }


def slices(task: Task) -> Found:
    """The same copies cut into slices, from the peers in turn, in one stream."""
    with sharing(task, trunk(task.shape, task.device), _config(task, slices=True)) as shared:
        shared.fetch()
        times = [slowest(task.device, shared.fetch, PASSES) for _ in range(task.rounds)]
    return {"rate": _remote_bytes(task.shape, _config(task)) / median(times) / 1e9}


def ideal(task: Task) -> Found:
    """Compare with all experts resident on every rank, in turn, for each number of tokens."""
    common = trunk(task.shape, task.device)
    resident = model(task.shape, common, range(task.shape.experts))
    points, config = [], _config(task)
    with sharing(task, common, config) as shared:
        fetch = median([slowest(task.device, shared.fetch, PASSES) for _ in range(task.rounds)])
        for tokens in task.tokens:
            found, _ = task.tables(tokens)
            hidden = task.hidden(tokens)
            for one in (resident, shared.model):
                one.route(found)
            same = torch.equal(resident(hidden), shared.model(hidden))
            times = rounds(task.device, [_on(resident, hidden), _on(shared.model, hidden)], 2, task.rounds)
            points.append({"tokens": tokens, "same": all(together(same)), "resident": times[0], "dwdp": times[1]})
    ranks = dist.get_world_size()
    return {"points": points, "fetch": fetch, "layers": task.shape.layers, "ranks": ranks, "shape": asdict(task.shape)}


def experts(task: Task) -> Found:
    """Compare with expert parallelism, with all ranks loaded alike and with some loaded more."""
    if task.shape.experts % dist.get_world_size():
        return {"skipped": f"{task.shape.experts} experts are not spread evenly over {dist.get_world_size()} ranks"}
    common, shape = trunk(task.shape, task.device), task.shape
    resident = model(shape, common, range(shape.experts))
    parallel = Model([_parallel(layer, shape) for layer in resident.layers])
    points = []
    with sharing(task, common, _config(task)) as shared:
        for tokens in task.tokens:
            for variation in (0.0, VARIATION):
                found, reached = task.tables(tokens, variation)
                hidden = task.hidden(tokens)
                for one in (shared.model, parallel):
                    one.route(found)
                left, right = shared.model(hidden).float(), parallel(hidden).float()
                error = float((left - right).norm() / left.norm())
                del left, right
                times = rounds(task.device, [_on(shared.model, hidden), _on(parallel, hidden)], 2, task.rounds)
                points.append(
                    {
                        "tokens": tokens,
                        "variation": sum(together(reached)) / dist.get_world_size(),
                        "error": max(together(error)),
                        "dwdp": times[0],
                        "parallel": times[1],
                    }
                )
    return {"points": points, "ranks": dist.get_world_size()}


def scaling(task: Task) -> Found:
    """Compare a group of half the ranks, two such groups side by side, and a group of all ranks."""
    world, tokens = dist.get_world_size(), task.tokens[len(task.tokens) // 2]
    if world < 4:
        return {"skipped": f"{world} ranks: there are too few to halve"}
    common, half = trunk(task.shape, task.device), world // 2
    found: Found = {"tokens": tokens, "ranks": world}
    table, hidden = task.tables(tokens)[0], task.hidden(tokens)
    for name, ranks, groups in (("half", half, 1), ("two halves", half, 2), ("all", world, 1)):
        config = DwdpConfig.spreading(task.shape.experts, ranks, num_groups=groups)
        if dist.get_rank() >= ranks * groups:
            slowest_of = [slowest(task.device, _idle, 1) for _ in range(task.rounds)]
        else:
            with sharing(task, common, config) as shared:
                shared.model.route(table)
                shared.model(hidden)
                slowest_of = [slowest(task.device, _on(shared.model, hidden), 2) for _ in range(task.rounds)]
        found[name] = ranks * groups * tokens / median(slowest_of)
        meet()
    return found


def theirs(task: Task) -> Found:
    """Drive the implementation of another package over the same layers."""
    from benchmarks.gpu_dwdp_sglang import drive

    return drive(task)


PARTS: Mapping[str, Callable[[Task], Found]] = MappingProxyType(
    {part.__name__: part for part in (limit, prefetch, slices, ideal, experts, scaling, theirs)}
)


def _peer_copy(device: torch.device) -> float:
    """Return the GB/s of the best of some large driver copies to this device from the next; on the host, within it."""
    nbytes, places = (64 << 20, ("cpu", "cpu")) if device.type == "cpu" else (8 << 30, ("cuda:1", "cuda:0"))
    source, destination = (torch.ones(nbytes, dtype=torch.uint8, device=place) for place in places)
    destination.copy_(source)  # torch lets the devices reach each other; without that the host is in between
    finish(device)
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(driver().on(device.index))
        stream: Stream = CudaStream() if device.type == "cuda" else HostStream()
        stack.callback(stream.close)
        best = math.inf
        for _ in range(5):
            begun = time.perf_counter()
            stream.copy_all([(destination.data_ptr(), source.data_ptr(), nbytes)])
            stream.finish()
            best = min(best, time.perf_counter() - begun)
    return nbytes / best / 1e9


def _config(task: Task, *, slices: bool = False) -> DwdpConfig:
    return DwdpConfig.spreading(task.shape.experts, dist.get_world_size(), contention_opt=slices)


def _remote_bytes(shape: Shape, config: DwdpConfig) -> int:
    return shape.layers * (shape.experts - config.num_experts_per_worker) * shape.expert_bytes


def _on(one: Model, hidden: torch.Tensor) -> Callable[[], object]:
    return lambda: one(hidden)


def _idle() -> None:
    """Be one of the ranks that take no part."""


def _parallel(layer: torch.nn.Module, shape: Shape) -> Layer:
    assert isinstance(layer, Layer)
    own = ParallelExperts(layer.block.experts, shape.experts)  # type: ignore[arg-type]
    return Layer(layer.attention, Block(layer.block.gate, own, shape.top_k))


def _host(task: Task, shared: Sharing) -> float:
    """Return the microseconds of the processor that a layer's wait and release take."""
    finish(task.device)
    found = []
    for _ in range(task.rounds):
        begun = time.thread_time()
        shared.fetch()
        found.append(time.thread_time() - begun)
        finish(task.device)
    return 1e6 * median(found) / task.shape.layers


def _refused(task: Task, shared: Sharing) -> bool:
    """Return whether the driver does not take several copies in one call, or refused: they went one by one then."""
    if task.device.type == "cuda" and not driver().has(BATCH_CALL):
        return True
    running = shared.manager._running
    return running is not None and any(getattr(lane, "_refused", False) for lane in running.prefetcher._lanes)


def _free(device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    finish(device)
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
