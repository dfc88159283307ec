"""Where a vLLM worker is: the number of its host within the replica."""

from typing import Any


def node_rank(parallel: Any) -> int:
    """Return the number of this worker's host, which is the same wherever the same ranks are on one host.

    The engine has counted its hosts, whichever way its processes were started. Replicas of data parallelism that share
    nothing do not know of each other, but write into one cache, under numbers of their own: a host is known by the
    first of those that it has.

    Args:
        parallel: vLLM's configuration of parallelism.
    """
    from vllm.distributed.parallel_state import get_node_count, get_world_group

    world, hosts = get_world_group(), int(get_node_count())
    workers_of_host = -(-world.world_size // hosts)
    number = int(world.rank_in_group // workers_of_host)
    local = parallel.data_parallel_rank_local
    if parallel.data_parallel_size > 1 or local is None:
        return number
    return number + hosts * int(parallel.data_parallel_index - local)
