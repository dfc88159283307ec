"""The implementation of the package `sglang`, driven directly: its modules by themselves, over the same layers.

Its sources are read from a folder, `srt` of an installed package; they need `cuda-bindings`. What those modules import
of the rest of the package is stood in for: one function that logs. Where the driver refuses fabric handles they
exchange file descriptors, as ours do: one host, with no channels of a fabric manager, is enough.

Its manager, `DwdpManager`, is not driven. It takes layers that are the engine's `FusedMoE` and no others, and its rank
and groups from the engine's runtime: without the whole engine it cannot be set up, and importing it imports that. What
its set-up does is done here, in the same order, but for two steps that find nothing to do with these shapes: experts
that end in the middle of a unit of memory, and tensors too small to be shared.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from benchmarks.gpu_dwdp_clock import meet, rounds, slowest, together
from benchmarks.gpu_dwdp_model import Experts, Layer, Model, model, trunk

if TYPE_CHECKING:
    from benchmarks.gpu_dwdp_parts import Found, Task

_PACKAGES = ("", "srt", "srt/utils", "srt/layers", "srt/layers/moe", "srt/layers/moe/dwdp")
_NAMES = {"w13_weight": "gate_up", "w2_weight": "down"}


def drive(task: "Task") -> "Found":
    """Fetch alone, then compute, with theirs and ours in turn."""
    from benchmarks.gpu_dwdp_parts import _config, _on, _remote_bytes, sharing

    if task.device.type == "cpu" or not task.theirs:
        return {"skipped": "it needs a CUDA device and --theirs FOLDER"}
    pieces, tokens = _loaded(Path(task.theirs)), task.tokens[len(task.tokens) // 2]
    common, config = trunk(task.shape, task.device), _config(task)
    held = config.partition(task.shape.experts).held(dist.get_rank())
    other = model(task.shape, common, held)
    with sharing(task, common, config) as shared, _set_up(task, pieces, other) as manager:
        table, hidden = task.tables(tokens)[0], task.hidden(tokens)
        for one in (other, shared.model):
            one.route(table)
        same = torch.equal(other(hidden), shared.model(hidden))
        fetch = _fetching(manager, task.shape.layers)
        times = [slowest(task.device, fetch, 3) for _ in range(task.rounds)]
        ours = [slowest(task.device, shared.fetch, 3) for _ in range(task.rounds)]
        forward = rounds(task.device, [_on(shared.model, hidden), _on(other, hidden)], 2, task.rounds)
    remote = _remote_bytes(task.shape, config)
    return {
        "tokens": tokens,
        "ranks": dist.get_world_size(),
        "same": all(together(same)),
        "rate": remote / median(times) / 1e9,
        "our_rate": remote / median(ours) / 1e9,
        "forward": forward[1],
        "our_forward": forward[0],
    }


def _loaded(folder: Path) -> SimpleNamespace:
    """Return the classes that are driven, from a folder of sources."""
    for package in _PACKAGES:
        name = ".".join(["sglang", *package.split("/")]).rstrip(".")
        stub = ModuleType(name)
        stub.__path__ = [str(folder.parent / package)]
        sys.modules[name] = stub
    sys.modules["sglang.srt.utils"].log_info_on_rank0 = lambda logger, text: logger.info(text)  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    for module, names in (
        ("layout", ("DwdpExpertLayout", "build_layer_weight_specs")),
        ("transport", ("DWDPTransport",)),
        ("weight_buffer", ("WeightBuffer",)),
        ("weight_manager", ("DWDPWeightManager",)),
    ):
        full = f"sglang.srt.layers.moe.dwdp.{module}"
        __import__(full)
        found |= {name: getattr(sys.modules[full], name) for name in names}
    return SimpleNamespace(**found)


@contextmanager
def _set_up(task: "Task", pieces: SimpleNamespace, other: Model) -> Iterator[Any]:
    """Do what its own set-up does: move weights, exchange them, bind full tensors, call it around each layer."""
    shape, ranks = task.shape, dist.get_world_size()
    layout = pieces.DwdpExpertLayout(shape.experts, ranks, dist.get_rank())
    experts = {number: _experts(layer) for number, layer in enumerate(other.layers)}
    own = {(number, name): getattr(one, _NAMES[name]).data for number, one in experts.items() for name in _NAMES}
    specs = pieces.build_layer_weight_specs(own, shape.experts)
    group = SimpleNamespace(cpu_group=dist.group.WORLD, device_group=dist.group.WORLD)
    transport = pieces.DWDPTransport.create(
        layer_weight_specs=specs, local_params=own, group=group, layout=layout, device_id=task.device.index
    )
    buffer = pieces.WeightBuffer.create(
        layer_weight_specs=specs,
        handles=transport.handle_set,
        local_start=layout.local_expert_start,
        local_end=layout.local_expert_end,
        dwdp_size=ranks,
        device_id=task.device.index,
    )
    manager = pieces.DWDPWeightManager(
        weight_buffer=buffer,
        peer_views=transport.peer_views,
        peer_ranges=layout.peer_ranges,
        moe_layer_indices=list(experts),
        weight_names=list(_NAMES),
        dwdp_rank=dist.get_rank(),
        dwdp_size=ranks,
        transport=transport,
    )
    for number, one in experts.items():
        for name, attribute in _NAMES.items():
            getattr(one, attribute).data = buffer.get_full_tensor(number, name)
        one.register_forward_pre_hook(_calling(manager.wait_prefetch, number))
        one.register_forward_hook(_calling(manager.record_compute_and_prefetch_next, number))
    other.register_forward_pre_hook(lambda *_: manager.prefetch_first_layers())
    yield manager
    torch.cuda.synchronize(task.device)
    meet()
    manager.release()


def _experts(layer: torch.nn.Module) -> Experts:
    assert isinstance(layer, Layer)
    assert isinstance(layer.block.experts, Experts)
    return layer.block.experts


def _calling(action: Callable[[int], object], number: int) -> Callable[..., None]:
    def call(*_: object) -> None:
        action(number)

    return call


def _fetching(manager: Any, layers: int) -> Callable[[], None]:
    def fetch() -> None:
        manager.prefetch_first_layers()
        for number in range(layers):
            manager.wait_prefetch(number)
            manager.record_compute_and_prefetch_next(number)

    return fetch
