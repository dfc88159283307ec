"""Where a worker stands in its replica: which shard it holds, and of how many."""

import sys
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Rank and sizes of a worker's replica.

    Args:
        rank: Of the worker within its replica, over all of its nodes.
        local_rank: Of the worker on its node.
        tensor_parallel_size: Ranks that each layer is cut over.
        pipeline_parallel_size: Stages that the layers are dealt to.
        expert_parallel_size: Ranks that experts are dealt to.
    """

    rank: int = 0
    local_rank: int = 0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 1


def place_of(mapping: Any = None, model: Any = None) -> Place:
    """Return the place that the engine's mapping tells, or the one on the model; else what the process group tells.

    Args:
        mapping: TensorRT-LLM's `Mapping`.
        model: Has one as `model.model_config.mapping`.
    """
    mapping = mapping or getattr(getattr(model, "model_config", None), "mapping", None)
    if mapping is None:
        return _of_process_group()
    rank = int(getattr(mapping, "rank", 0))
    return Place(
        rank=rank,
        local_rank=int(getattr(mapping, "local_rank", rank)),
        tensor_parallel_size=_size(mapping, "tp_size"),
        pipeline_parallel_size=_size(mapping, "pp_size"),
        expert_parallel_size=_size(mapping, "moe_ep_size"),
    )


def device_index(place: Place) -> int:
    """Return the ordinal of this worker's accelerator."""
    return torch.cuda.current_device() if torch.cuda.is_available() else place.local_rank


def _size(mapping: Any, name: str) -> int:
    # The engine says -1 for what is not used.
    return max(int(getattr(mapping, name, 1) or 1), 1)


def _of_process_group() -> Place:
    """Return the place in MPI's world where the engine uses MPI, else in torch's, all of whose ranks share layers.

    MPI is asked only where the engine has started it: importing it starts it.
    """
    if (mpi := sys.modules.get("mpi4py.MPI")) is not None:
        rank, size = int(mpi.COMM_WORLD.Get_rank()), int(mpi.COMM_WORLD.Get_size())
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        rank, size = 0, 1
    return Place(rank=rank, local_rank=rank, tensor_parallel_size=size)
