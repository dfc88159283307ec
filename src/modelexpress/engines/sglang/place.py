"""Where an SGLang worker is: the number of its host within the replica, and whether it is the first one there."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a worker is.

    Args:
        node_rank: Of its host within the replica.
        first: Whether no other worker of the host comes before it.
    """

    node_rank: int
    first: bool


def place_of(parallel: Any) -> Place:
    """Return the place of the worker whose sizes and ranks SGLang has, as its launchers spread ranks over hosts.

    Devices do not tell: they may start at any number (--base-gpu-id), or each process may see its own alone. Source:
    `_calculate_rank_ranges` of `entrypoints/engine.py` in SGLang 0.5.

    Args:
        parallel: SGLang's sizes and ranks of parallelism.
    """
    stages_of_host = max(parallel.pp_size // parallel.nnodes, 1)
    hosts_of_stage = max(parallel.nnodes // parallel.pp_size, 1)
    group, stage = divmod(parallel.pp_rank, stages_of_host)
    host, rank = divmod(parallel.tp_rank, parallel.tp_size // hosts_of_stage)
    # Replicas of data parallelism are side by side on each host; those of attention are ranks of one replica.
    replica = 0 if parallel.attn_dp_size > 1 else parallel.dp_rank or 0
    return Place(int(group * hosts_of_stage + host), not (stage or rank or replica))
