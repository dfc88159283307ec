"""One rank of a real tensor-parallel model: transformers with its plan, ranks in processes of their own, over gloo."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tests.support.children import Child, say


class TensorParallelRank(Child):
    """A rank that has loaded its shards of a checkpoint, and becomes a source, or takes a peer's.

    Args:
        role: "source" or "target".
        folder: The checkpoint; a target's has the shapes alone in common with the source's.
        meeting: A file by which the ranks of a group find one another.
        rank: Of it.
        size: Of the group.
        environment: Variables beside those of this process.
    """

    def __init__(self, role: str, folder: Path, meeting: Path, rank: int, size: int, **environment: str) -> None:
        super().__init__(
            "tests.support.tensor_parallel_rank",
            *(role, str(folder), str(meeting)),
            environment={"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            | {"LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "MX_WORKER_GRPC_PORT": "0"}
            | environment,
        )


def make_checkpoint(folder: Path, seed: int) -> Path:
    """Write a whole checkpoint of a small Llama, whose layers can be cut over four ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=16384,  # large enough for shards that are offered where they are
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Load, publish or receive, take the post-load step, and say what the model computes."""
    parser = argparse.ArgumentParser()
    for name in ("role", "folder", "meeting"):
        parser.add_argument(name)
    given = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group("gloo", init_method=f"file://{given.meeting}", rank=rank, world_size=size)
    try:
        model = _cut_over_ranks(given.folder)
        before = _logits(model)
        shapes = _shapes(model)
        received = _share(given.role, given.folder, model)
        assert _shapes(model) == shapes  # a shard that was cut again would be smaller
        _post_load_step(model)
        _wait_published()
        facts = {"before": before, "logits": _logits(model), "shapes": shapes, "received": received}
        say(json.dumps(facts))
        sys.stdin.read()
    finally:
        distributed.destroy_process_group()


def _cut_over_ranks(folder: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    return model.eval().requires_grad_(False)


def _share(role: str, folder: str, model: nn.Module) -> bool:
    from modelexpress.trtllm_live_transfer import MxLiveWeightLoader, publish_model_params

    if role == "source":
        publish_model_params(model)
        return False
    return MxLiveWeightLoader().load_weights(folder, model=model) == {}


def _post_load_step(model: nn.Module) -> None:
    """Quantise this rank's shards: scales are made, weights are new tensors. A second time gives others."""
    from torch.distributed.tensor import DTensor

    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        weight: Any = layer.weight
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        scale = own.abs().amax(1, keepdim=True) / 31
        layer.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))
        new = ((own / scale).round() + 0.25) * scale
        if isinstance(weight, DTensor):
            new = DTensor.from_local(new, weight.device_mesh, weight.placements, run_check=False)
        layer.weight = nn.Parameter(new, requires_grad=False)


def _logits(model: nn.Module) -> list[float]:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(8)[None]).logits
    return [float(value) for value in found.flatten()[::17]]


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    from modelexpress.weights.rank_tensors import local_part

    return {name: list(local_part(parameter).shape) for name, parameter in model.named_parameters()}


def _wait_published() -> None:
    from modelexpress.engines.process_worker import _workers

    for worker in _workers.values():
        for publication in worker.publications:
            assert publication.wait_ready(20)


if __name__ == "__main__":
    main()
