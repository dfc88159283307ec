"""Reading checkpoint folders that the safetensors library wrote."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint import Checkpoint

ONE = torch.arange(6, dtype=torch.float32).reshape(2, 3)
TWO = torch.tensor([1, 2], dtype=torch.int64)
EMPTY = torch.zeros(0, 4, dtype=torch.bfloat16)


def save(folder: Path, file: str, tensors: Mapping[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(dict(tensors), folder / file)


def save_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tmp_path, "a.safetensors", {"one": ONE})
    save(tmp_path, "b.safetensors", {"two": TWO, "empty": EMPTY})
    save_index(tmp_path, {"one": "a.safetensors", "two": "b.safetensors", "empty": "b.safetensors"})
    return tmp_path


def test_tensors_are_those_that_were_saved(sharded: Path) -> None:
    with Checkpoint.open(sharded) as checkpoint:
        assert checkpoint.total_bytes == 24 + 16
        assert checkpoint.config == {}
        for name, tensor in {"one": ONE, "two": TWO, "empty": EMPTY}.items():
            stored = checkpoint.tensors[name]
            assert stored.shape == tensor.shape
            assert f"torch.{stored.dtype}" == str(tensor.dtype)
            assert checkpoint.buffer(name) == tensor.view(torch.uint8).numpy().tobytes()
            assert checkpoint.buffer(name).readonly


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", {"one": ONE})
    save(tmp_path, "consolidated.safetensors", {"one.other": ONE})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["one"]


def test_files_of_any_name_are_found(tmp_path: Path) -> None:
    save(tmp_path, "x.safetensors", {"one": ONE})
    save(tmp_path, "y.safetensors", {"two": TWO})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["one", "two"]


def test_links_are_followed_as_the_hub_cache_has_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path, "blobs/0123", {"one": ONE})
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    with Checkpoint.open(tmp_path / "snapshot") as checkpoint:
        assert checkpoint.total_bytes == 24


def test_a_view_outlives_the_checkpoint(sharded: Path) -> None:
    with Checkpoint.open(sharded) as checkpoint:
        view = checkpoint.buffer("two")
    assert view == TWO.numpy().tobytes()
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.buffer("one")


def test_an_unknown_name_is_a_key_error(sharded: Path) -> None:
    with Checkpoint.open(sharded) as checkpoint, pytest.raises(KeyError):
        checkpoint.buffer("three")


def test_no_descriptor_is_left(sharded: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Checkpoint.open(sharded):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_config_is_parsed(sharded: Path) -> None:
    (sharded / "config.json").write_text('{"model_type": "llama"}')
    with Checkpoint.open(sharded) as checkpoint:
        assert checkpoint.config == {"model_type": "llama"}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', "\udcff"])
def test_a_damaged_config_is_refused(sharded: Path, text: str) -> None:
    (sharded / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        Checkpoint.open(sharded)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint folder .*nowhere"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot open .*b\.safetensors: No such file"):
        Checkpoint.open(sharded)


def test_a_tensor_that_the_index_invents_is_named(sharded: Path) -> None:
    save(sharded, "b.safetensors", {"two": TWO})
    with pytest.raises(CheckpointError, match="do not hold: 'empty'"):
        Checkpoint.open(sharded)


def test_a_tensor_in_another_shard_than_listed_is_named(sharded: Path) -> None:
    save_index(sharded, {"one": "b.safetensors", "two": "a.safetensors", "empty": "b.safetensors"})
    with pytest.raises(CheckpointError, match="do not hold: 'one', 'two'"):
        Checkpoint.open(sharded)


def test_a_tensor_that_the_index_omits_is_named(sharded: Path) -> None:
    save_index(sharded, {"one": "a.safetensors", "two": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"'b\.safetensors' hold: 'empty'"):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    save(sharded, "a.safetensors", {"one": ONE, "two": TWO})
    with pytest.raises(CheckpointError, match=r"'a\.safetensors', 'b\.safetensors' hold the same.*'two'"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "x/../../a", "", ".", "a\0b", "\ud800", "a//b"])
def test_an_index_cannot_leave_its_folder(sharded: Path, file: str) -> None:
    save_index(sharded, {"one": file})
    with pytest.raises(CheckpointError, match="no file inside the folder"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"one": 1}, {"one": [[[]]]}])
def test_an_index_of_another_form_is_refused(sharded: Path, weight_map: object) -> None:
    save_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("size", [0, 3, 40, 100])
def test_a_truncated_file_is_named(sharded: Path, size: int) -> None:
    os.truncate(sharded / "b.safetensors", size)
    with pytest.raises(CheckpointError, match=r"b\.safetensors is damaged or incomplete"):
        Checkpoint.open(sharded)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        Checkpoint.open(tmp_path)


def test_many_names_are_cut_short(sharded: Path) -> None:
    save_index(sharded, {f"layer.{index}": "a.safetensors" for index in range(9)} | {"one": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"'layer\.4' and 4 more"):
        Checkpoint.open(sharded)
