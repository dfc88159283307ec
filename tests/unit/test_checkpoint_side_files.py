"""Which files belong to a checkpoint besides its tensors."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.side_files import check_side_paths, read_side_file

BELONG = (
    "chat_template.jinja",
    "config.json",
    "extra/tokenizer.model",
    "generation_config.json",
    "merges.txt",
    "tokenizer.json",
)
DO_NOT = (
    ".cache/config.json",
    ".hidden.json",
    "README.md",
    "model.safetensors.index.json",
    "modeling_own.py",
    "pytorch_model.bin.index.json",
    "weights.bin",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (*BELONG, *DO_NOT):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text('{"weight_map": {"one": "model.safetensors"}}')
    safetensors.torch.save_file({"one": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_side_files_are_those_that_a_loader_needs(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.side_files == tuple(map(Path, BELONG))


def test_their_content_is_read(folder: Path) -> None:
    assert read_side_file(folder / "merges.txt").startswith(b'{"weight_map"')


def test_a_huge_file_is_refused(folder: Path) -> None:
    os.truncate(folder / "merges.txt", 2**30)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError, match=r"merges\.txt has more"):
        _ = checkpoint.side_files
    with pytest.raises(CheckpointError, match=r"merges\.txt has more"):
        read_side_file(folder / "merges.txt")


def test_a_folder_of_very_many_files_is_refused(folder: Path) -> None:
    for index in range(1001):
        (folder / f"{index}.txt").touch()
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(CheckpointError, match="more than 1000 side files"),
    ):
        _ = checkpoint.side_files


def test_a_folder_named_like_a_file_is_left_out(folder: Path) -> None:
    (folder / "folder.json").mkdir()
    with Checkpoint.open(folder) as checkpoint:
        assert Path("folder.json") not in checkpoint.side_files


def test_what_belongs_may_be_written() -> None:
    check_side_paths(BELONG)


@pytest.mark.parametrize(
    "path",
    [
        *DO_NOT,
        "",
        "/config.json",
        "../config.json",
        "a/../config.json",
        "./config.json",
        "a//config.json",
        "config.json/",
        "a\0.json",
        "a\n.json",
        "\ud800.json",
        "model.safetensors",
    ],
)
def test_what_does_not_belong_may_not(path: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be a side file"):
        check_side_paths(["config.json", path])


def test_a_file_cannot_be_another_ones_folder() -> None:
    with pytest.raises(CheckpointError, match=r"'a\.json/b/c\.json' would lie inside another"):
        check_side_paths(["a.json", "a.json/b/c.json"])
