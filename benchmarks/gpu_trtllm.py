"""Live weights between two replicas of TensorRT-LLM on GPUs: four ranks of Llama-3.1-70B cut in eight, all at once.

Run it with `python -m benchmarks.gpu_trtllm` where there are two GPUs; a rank takes 17.6 GB twice. Each rank of either
replica is a process that sees one GPU, and calls what the engine calls. Every shard crosses the link: where a rank's
source is on one GPU, its target is on another. The limit is what plain copies of the driver reach over the same links
in the same directions at once. `--device cpu` runs the same on the host, with tiny shapes.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from torch import nn

from benchmarks.gpu_models import Role, role
from modelexpress.cli.child import private_registry
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.memory.cuda_copy import Stream
from modelexpress.memory.cuda_driver import driver

RESULTS = Path(__file__).parent / "results" / "gpu_trtllm.json"
MODEL = "benchmark/llama-70b-shard"
RANKS, CUT = 4, 8
"""Ranks that take part, and those that the model is cut over."""
PUBLISHED = "46 to 64 GB/s a rank is what others published, each rank with a network card of its own"
_COPIED = 8 << 30
_REPETITIONS = 5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a dense decoder; the defaults are Llama-3.1-70B."""

    layers: int = 80
    hidden: int = 8192
    intermediate: int = 28672
    key_value: int = 1024
    vocabulary: int = 128256


TINY = Sizes(4, 256, 512, 64, 1024)


class Shard(nn.Module):
    """One rank's part of the model, with products fused as the engine fuses them."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        super().__init__()
        hidden, middle = sizes.hidden, sizes.intermediate // CUT
        self.layers = nn.ModuleList()
        for _ in range(sizes.layers):
            layer = nn.Module()
            for name, shape in {
                "qkv_proj": ((hidden + 2 * sizes.key_value) // CUT, hidden),
                "o_proj": (hidden, hidden // CUT),
                "gate_up_proj": (2 * middle, hidden),
                "down_proj": (hidden, middle),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items():
                layer.register_parameter(name, _empty(shape, device))
            self.layers.append(layer)
        self.embed_tokens = _empty((sizes.vocabulary // CUT, hidden), device)
        self.lm_head = _empty((sizes.vocabulary // CUT, hidden), device)

    def fill(self, seed: int) -> None:
        """Fill it with random bits."""
        torch.manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.view(torch.int16).random_(-(1 << 15), 1 << 15)

    def checksum(self) -> int:
        """Return a sum over all bits that depends on which tensor they are in."""
        total = torch.zeros((), dtype=torch.int64, device=self.lm_head.device)
        for number, parameter in enumerate(self.parameters(), 1):
            total += number * parameter.data.view(torch.int16).sum(dtype=torch.int64)
        return int(total)


def _empty(shape: Sequence[int], device: str) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.bfloat16, device=device), requires_grad=False)


def serve(rank: int, device: str) -> None:
    """Be a rank of the replica that is up, as the engine's worker is, until standard input ends."""
    from modelexpress.engines.process_worker import _workers
    from modelexpress.trtllm_live_transfer import publish_model_params

    model = _shard(rank, device)
    model.fill(rank)
    _finish(device)
    begun = time.perf_counter()
    publish_model_params(model)
    offered = time.perf_counter() - begun
    publications = [publication for worker in _workers.values() for publication in worker.publications]
    assert publications, "nothing is offered: the log says why"
    assert publications[0].wait_ready(60)
    _say({"offered": offered, "checksum": model.checksum()})
    sys.stdin.read()


def receive(rank: int, device: str) -> None:
    """Be a rank of the new replica: fill the shard as often as standard input has lines."""
    from modelexpress.trtllm_live_transfer import MxLiveWeightLoader

    model = _shard(rank, device)
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    _finish(device)
    _say({"nbytes": nbytes})
    for _ in sys.stdin:
        for parameter in model.parameters():
            parameter.data.zero_()
        _finish(device)
        _say({"zeroed": True})
        sys.stdin.readline()
        begun = time.perf_counter()
        MxLiveWeightLoader().load_weights("/nowhere", mapping=_mapping(rank), model=model)
        seconds = time.perf_counter() - begun
        _say({"seconds": seconds, "checksum": model.checksum()})


def _shard(rank: int, device: str) -> Shard:
    model = Shard(Sizes() if device == "cuda" else TINY, device)
    model.model_config = SimpleNamespace(mapping=_mapping(rank))  # type: ignore[assignment]
    return model


def _mapping(rank: int) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, local_rank=rank, tp_size=CUT, pp_size=1, moe_ep_size=1)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _say(found: dict[str, object]) -> None:
    print(json.dumps(found), flush=True)


def replicas(device: str) -> tuple[list[list[float]], int, list[float]]:
    """Return the seconds of each load of each rank, the bytes of a rank, and what offering took."""
    devices = torch.cuda.device_count() if device == "cuda" else 1
    with private_registry() as registry, ExitStack() as stack:
        os.environ |= {"MODEL_EXPRESS_URL": registry, "MODEL_NAME": MODEL, "MX_SOURCE_QUERY_TIMEOUT": "20"}

        def start(name: str, shift: int) -> list[Role]:
            return [
                stack.enter_context(
                    role(
                        "benchmarks.gpu_trtllm",
                        name,
                        str((rank + shift) % devices),
                        ["--rank", str(rank), "--device", device],
                    )
                )
                for rank in range(RANKS)
            ]

        sources = start("source", 0)
        offers = [json.loads(source.line()) for source in sources]
        targets = start("target", 1)
        sizes = [json.loads(target.line())["nbytes"] for target in targets]
        found = [_all_at_once(targets, [offer["checksum"] for offer in offers]) for _ in range(_REPETITIONS)]
    return found, sizes[0], [offer["offered"] for offer in offers]


def _all_at_once(targets: Sequence[Role], checksums: Sequence[int]) -> list[float]:
    for target in targets:
        target.tell("clear")
    for target in targets:
        target.line()
    for target in targets:
        target.tell("load")
    answers = [json.loads(target.line()) for target in targets]
    assert [answer["checksum"] for answer in answers] == list(checksums), "a shard is not what its source has"
    return [answer["seconds"] for answer in answers]


def limit() -> float:
    """Return the GB/s that each rank has where plain copies run in the directions of all ranks at once."""
    devices = torch.cuda.device_count()
    copies, best = [], 0.0
    for rank in range(RANKS):
        source, target = rank % devices, (rank + 1) % devices
        left, right = (torch.empty(_COPIED, dtype=torch.uint8, device=f"cuda:{one}") for one in (source, target))
        right.copy_(left)  # torch lets the devices reach each other
        with driver().on(target):
            copies.append((right, left, Stream(), target))
    for _ in range(_REPETITIONS):
        for device in range(devices):
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        for right, left, stream, target in copies:
            with driver().on(target):
                stream.copy(right.data_ptr(), left.data_ptr(), _COPIED)
        for *_, stream, target in copies:
            with driver().on(target):
                stream.finish()
        best = max(best, _COPIED / (time.perf_counter() - begun) / 1e9)
    for *_, stream, target in copies:
        with driver().on(target):
            stream.close()
    del copies, left, right
    torch.cuda.empty_cache()
    return best


def figures(device: str) -> list[Figure]:
    """Measure all of it."""
    copied = limit() if device == "cuda" else None
    found, nbytes, offered = replicas(device)
    # The first load of a process loads kernels, and makes contexts and streams.
    slowest = [max(seconds) for seconds in found]
    what, gigabytes = "plain copies in all of these directions at once", nbytes / 1e9
    rate = gigabytes / statistics.median(slowest[1:])
    title = f"{RANKS} ranks of {gigabytes:.1f} GB at once"
    return [
        Figure(f"{title}: a rank", rate, "GB/s", what, copied, note=PUBLISHED),
        Figure(f"{title}: together", RANKS * rate, "GB/s", what, copied and RANKS * copied),
        Figure(f"{title}: the slowest rank", statistics.median(slowest[1:]), "s"),
        Figure(f"{title}: the slowest rank's first load", slowest[0], "s"),
        Figure("offering a shard, digests and all", statistics.median(offered), "s"),
    ]


def main() -> None:
    """Measure, print a table, write JSON; or be one of the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["source", "target"], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.role:
        (serve if given.role == "source" else receive)(given.rank, given.device)
        return
    found = figures(given.device)
    devices: dict[str, object] = {}
    if given.device == "cuda":
        devices = {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count()}
    machine = {**devices, **dataclasses.asdict(Machine.this())}
    given.out.write_text(json.dumps({"machine": machine, "figures": [f.fields() for f in found]}, indent=1) + "\n")
    Console(width=150).print(figure_table(f"live weights of TensorRT-LLM on {Machine.this()}", found))


if __name__ == "__main__":
    main()
