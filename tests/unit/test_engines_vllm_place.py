"""On which host of its replica a vLLM worker is; vLLM is a stand-in with the two functions that are asked there."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelexpress.engines.vllm.place import node_rank


def place(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, hosts: int, **parallel: Any) -> int:
    """Return the host of one rank of a world."""
    state: Any = ModuleType("vllm.distributed.parallel_state")
    state.get_world_group = lambda: SimpleNamespace(world_size=size, rank_in_group=rank)
    state.get_node_count = lambda: hosts
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, state.__name__, state)
    replica = {"data_parallel_size": 1, "data_parallel_index": 0, "data_parallel_rank_local": None}
    return node_rank(SimpleNamespace(**replica | parallel))


@pytest.mark.parametrize(
    ("size", "hosts", "ranks"),
    [(1, 1, [0]), (4, 1, [0, 0, 0, 0]), (4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 0, 1, 1])],
)
def test_ranks_are_counted_host_by_host(
    monkeypatch: pytest.MonkeyPatch, size: int, hosts: int, ranks: list[int]
) -> None:
    assert [place(monkeypatch, rank, size, hosts) for rank in range(size)] == ranks


def test_replicas_that_share_experts_are_one_world(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"data_parallel_size": 2, "data_parallel_index": 1, "data_parallel_rank_local": 0}
    assert place(monkeypatch, 2, 4, 2, **shared) == 1


@pytest.mark.parametrize(
    ("index", "local", "hosts", "rank", "expected"),
    [(0, 0, 1, 0, 0), (3, 1, 1, 0, 2), (1, 0, 2, 0, 2), (1, 0, 2, 1, 3)],
)
def test_replicas_that_share_nothing_are_on_hosts_of_their_own(
    monkeypatch: pytest.MonkeyPatch, index: int, local: int, hosts: int, rank: int, expected: int
) -> None:
    alone = {"data_parallel_index": index, "data_parallel_rank_local": local}
    assert place(monkeypatch, rank, hosts, hosts, **alone) == expected
