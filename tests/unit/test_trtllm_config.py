"""The configuration of a TensorRT-LLM checkpoint, and what its identity is made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelexpress.engines.trtllm.config import CheckpointConfig, rank_paths, read_config
from modelexpress.engines.trtllm.identity import (
    checkpoint_identity,
    described,
    header_name,
    is_header_name,
    world_size_of,
)
from modelexpress.engines.trtllm.rank_memory import RankFile, RankMemory
from modelexpress.errors import CheckpointError
from modelexpress.identity import BackendFramework, SourceIdentity
from tests.support.trtllm_checkpoints import config_of, plain_rank, write_checkpoint

CHUNK = 64 << 10


def parsed(fields: Any) -> CheckpointConfig:
    return CheckpointConfig.parse(json.dumps(fields).encode(), Path("config.json"))


def memories(folder: Path, chunk_bytes: int = CHUNK) -> list[RankMemory]:
    config = read_config(folder)
    files = [RankFile.open(path) for path in rank_paths(folder, config.world_size)]
    return [file.read({"a.json": file.header}, chunk_bytes, lambda _: None) for file in files]


def test_what_the_mapping_says() -> None:
    config = parsed(config_of(2, 3, quantization={"quant_algo": "FP8"}))
    assert (config.world_size, config.tensor_parallel_size, config.pipeline_parallel_size) == (6, 2, 3)
    assert (config.dtype, config.quantization) == ("bfloat16", "FP8")


def test_one_rank_where_nothing_is_said_and_a_product_where_only_the_parts_are() -> None:
    assert parsed({}).world_size == 1
    assert parsed({"mapping": {"tp_size": 2, "pp_size": 2, "cp_size": 2}}).world_size == 8


@pytest.mark.parametrize("value", [0, -1, "2", True, 2.0, 10**9, None])
def test_a_size_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="world_size"):
        parsed({"mapping": {"world_size": value}})


@pytest.mark.parametrize(
    "mapping",
    [{"world_size": 4, "tp_size": 2}, {"world_size": 2}, {"world_size": 2, "tp_size": 2, "cp_size": 2}],
)
def test_a_world_that_is_not_the_product_of_its_parts_is_refused(mapping: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"world_size \d, but tp_size, pp_size and cp_size make \d"):
        parsed({"mapping": mapping})


@pytest.mark.parametrize("fields", [[], "x", {"mapping": [1]}, {"quantization": "fp8"}])
def test_what_is_no_object_is_refused(fields: object) -> None:
    with pytest.raises(CheckpointError, match="no object"):
        parsed(fields)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Config not found: .*config\.json") as caught:
        read_config(tmp_path)
    assert isinstance(caught.value, CheckpointError)
    folder = write_checkpoint(tmp_path / "checkpoint", config_of(2), plain_rank)
    (folder / "rank1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"Weights not found: .*rank1\.safetensors"):
        rank_paths(folder, 2)


def test_files_of_more_ranks_than_the_configuration_counts_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", config_of(4), plain_rank)
    with pytest.raises(CheckpointError, match=r"'rank2\.safetensors', 'rank3\.safetensors' beside the 2 ranks"):
        rank_paths(folder, 2)
    (folder / "rank.safetensors").touch()
    assert len(rank_paths(folder, 4)) == 4


def test_the_identity_tells_the_number_of_ranks_and_the_content(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", config_of(2), plain_rank)
    same = write_checkpoint(tmp_path / "same", config_of(2), plain_rank)
    other = write_checkpoint(tmp_path / "other", config_of(2), lambda rank: plain_rank(rank + 1))
    first, second, third = (
        checkpoint_identity("llama", read_config(folder), memories(folder), "r1") for folder in (one, same, other)
    )
    assert first == second
    assert first.source_id != third.source_id, "shapes, dtypes and names are the same, values are not"
    assert world_size_of(first) == 2
    assert (first.backend_framework, first.dtype, first.revision) == (BackendFramework.TRT_LLM, "bfloat16", "r1")


def test_the_identity_does_not_depend_on_how_a_source_cuts_chunks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "one", config_of(2), plain_rank)
    config = read_config(folder)
    cut = [memories(folder, chunk_bytes) for chunk_bytes in (CHUNK, 2 * CHUNK, 64 << 20)]
    assert len({checkpoint_identity("llama", config, each, "").source_id for each in cut}) == 1
    assert len({each[0].manifest.chunk_bytes for each in cut}) == 3


def test_what_tells_checkpoints_of_one_name_apart(tmp_path: Path) -> None:
    assert said(tmp_path / "1", config_of(2)) == "2 ranks: tp 2, pp 1, bfloat16"
    quantised = config_of(1, 2, quantization={"quant_algo": "FP8"}, dtype="float16")
    assert said(tmp_path / "2", quantised, "r7") == "2 ranks: tp 1, pp 2, float16, FP8, revision r7"
    context = config_of(1, mapping={"tp_size": 1, "cp_size": 2, "world_size": 2})
    assert said(tmp_path / "3", context) == "2 ranks: tp 1, pp 1, cp 2, bfloat16"
    stranger = SourceIdentity(model_name="m", dtype="x" * 10_000)
    assert len(described(stranger)) < 200, "anybody may publish anything"


def said(folder: Path, config: dict[str, Any], revision: str = "") -> str:
    write_checkpoint(folder, config, plain_rank)
    return described(checkpoint_identity("llama", read_config(folder), memories(folder), revision))


def test_other_material_is_no_checkpoint() -> None:
    assert world_size_of(SourceIdentity(model_name="llama")) is None
    live = {"trtllm_weight_layout": "post_transform", "trtllm_world_size": "2"}
    assert world_size_of(SourceIdentity(backend_framework=BackendFramework.TRT_LLM, extra_parameters=live)) is None


@pytest.mark.parametrize(
    "size", ["²", "", "0", "-1", "4097", "1000000000", pytest.param("9" * 5000, id="thousands of digits")]
)
def test_a_number_of_ranks_that_no_checkpoint_has_is_no_source(size: str) -> None:
    said = {"trtllm_weight_layout": "checkpoint", "trtllm_world_size": size}
    assert world_size_of(SourceIdentity(backend_framework=BackendFramework.TRT_LLM, extra_parameters=said)) is None


def test_names_of_headers() -> None:
    assert is_header_name(header_name(12))
    assert not is_header_name("config.json")
