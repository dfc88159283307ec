"""How tensors are laid out in the files of a checkpoint."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import CheckpointError
from modelexpress.weights.safetensors_header import DATA_ALIGNMENT, parse_header
from modelexpress.weights.shard_layout import plan_shards
from modelexpress.weights.stored_tensor import TensorEntry


def entry(name: str, nbytes: int) -> TensorEntry:
    return TensorEntry(name, "uint8", (nbytes,), nbytes)


@given(st.lists(st.integers(0, 300), max_size=12), st.integers(1, 500))
def test_shards_hold_everything_once_and_aligned(sizes: list[int], shard_bytes: int) -> None:
    given_entries = [entry(str(index), size) for index, size in enumerate(sizes)]
    shards = plan_shards(given_entries, shard_bytes)
    placed = [tensor for shard in shards for tensor in shard.tensors]
    assert sorted(tensor.name for tensor in placed) == sorted(item.name for item in given_entries)
    for shard in shards:
        content = shard.header + bytes(shard.nbytes - len(shard.header))
        assert set(parse_header(content, shard.file)) == set(shard.tensors)
        assert len(shard.tensors) <= 1 or shard.nbytes - len(shard.header) <= shard_bytes
    for tensor in placed:
        assert tensor.offset % min(DATA_ALIGNMENT, tensor.nbytes & -tensor.nbytes or DATA_ALIGNMENT) == 0


def test_the_given_order_is_kept_where_sizes_are_even() -> None:
    (shard,) = plan_shards([entry("c", 128), entry("a", 64), entry("odd", 3), entry("b", 640)], 10**9)
    assert [tensor.name for tensor in shard.tensors] == ["c", "a", "b", "odd"]


def test_files_are_named_as_transformers_names_them() -> None:
    assert [shard.file for shard in plan_shards([entry("a", 4), entry("b", 4)], 4)] == [
        Path("model-00001-of-00002.safetensors"),
        Path("model-00002-of-00002.safetensors"),
    ]
    assert [shard.file for shard in plan_shards([], 4)] == [Path("model.safetensors")]


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(CheckpointError, match="given twice: 'a'"):
        plan_shards([entry("a", 4), entry("a", 8)], 4)
