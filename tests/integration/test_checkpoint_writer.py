"""Checkpoint folders that the writer makes, read with the safetensors library and with transformers."""

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from modelexpress.cli.demo_model import build_demo_model, demo_logits
from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.checkpoint_writer import CheckpointWriter
from modelexpress.weights.dtypes import TYPE_BY_NAME
from modelexpress.weights.side_files import read_side_file
from modelexpress.weights.staging_folder import PREFIX
from modelexpress.weights.stored_tensor import TensorEntry

SMALL = [TensorEntry("w", "uint8", (4,), 4)]


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.arange(dtype.itemsize * torch.Size(shape).numel(), dtype=torch.uint8)
    if dtype == torch.bool:
        values = values % 2
    return values.view(dtype).reshape(shape)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def entry_of(name: str, tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)


def read_with_library(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            tensors.update((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    return tensors


def write(out: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int) -> None:
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    with CheckpointWriter(out, entries, {"config.json": b"{}"}, shard_bytes=shard_bytes) as writer:
        for name, tensor in tensors.items():
            content = bytes_of(tensor)
            writer.buffer(name)[:] = content
        assert writer.commit() == out


@pytest.mark.parametrize("shard_bytes", [10**9, 20, 1])
def test_the_library_reads_every_dtype(tmp_path: Path, shard_bytes: int) -> None:
    tensors = {name: sample(getattr(torch, name), (2, 3)) for name in TYPE_BY_NAME}
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 7)
    tensors["näme with \"quotes'"] = torch.ones(5, dtype=torch.int8)
    write(tmp_path / "out", tensors, shard_bytes)
    read = read_with_library(tmp_path / "out")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(read[name]) == bytes_of(tensor)
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        assert all(checkpoint.buffer(name) == bytes_of(tensor) for name, tensor in tensors.items())


def test_a_sharded_checkpoint_has_an_index(tmp_path: Path) -> None:
    write(tmp_path / "out", {"b": torch.ones(4), "a": torch.ones(4)}, 16)
    assert json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 32},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
        },
    }


def test_a_copy_of_a_model_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    original = build_demo_model(tmp_path / "original", scale="tiny")
    with Checkpoint.open(original) as checkpoint:
        files = {str(path): read_side_file(original / path) for path in checkpoint.side_files}
        entries = list(checkpoint.tensors.values())
        with CheckpointWriter(tmp_path / "copy", entries, files, shard_bytes=500_000) as writer:
            for entry in entries:
                writer.buffer(entry.name)[:] = checkpoint.buffer(entry.name)
            copy = writer.commit()
    first, second = (
        demo_logits(
            AutoModelForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            "A neighbour",
        )
        for folder in (original, copy)
    )
    assert torch.equal(first, second)


def test_bytes_may_land_at_an_address(tmp_path: Path) -> None:
    values = torch.arange(1000, dtype=torch.float64)
    with CheckpointWriter(tmp_path / "out", [*SMALL, entry_of("v", values)], {}) as writer:
        ctypes.memmove(writer.address("v"), values.data_ptr(), values.nbytes)
        writer.commit()
    assert torch.equal(read_with_library(tmp_path / "out")["v"], values)


def test_nothing_is_seen_before_commit_and_nothing_hidden_after(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", SMALL, {"sub/tokenizer.json": b"{}"}) as writer:
        assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
        writer.commit()
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == {
        Path("out/model.safetensors"),
        Path("out/sub/tokenizer.json"),
    }


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "new" / "parents" / "out", SMALL, {}) as writer:
        view = writer.buffer("w")
    assert list(tmp_path.iterdir()) == []
    view[:] = b"late"  # a transfer that has not noticed yet must not crash


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path / "out", SMALL, {}):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", {"w": torch.ones(2)}, 100)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_full_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(CheckpointError, match="is not empty"),
        CheckpointWriter(tmp_path, SMALL, {}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with CheckpointWriter(out, SMALL, {}) as writer:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match="is not empty"):
            writer.commit()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes.txt"]


def test_overwriting_replaces_the_folder_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    with CheckpointWriter(out, SMALL, {}, overwrite=True) as writer:
        assert (out / "old.txt").exists()
        writer.commit()
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with CheckpointWriter(tmp_path / "out", SMALL, {}) as writer:
        writer.commit()
    assert (tmp_path / "disk" / "model.safetensors").exists()
    assert (tmp_path / "out").is_symlink()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with (
        pytest.raises(CheckpointError, match="is a file"),
        CheckpointWriter(tmp_path / "out", SMALL, {}, overwrite=True),
    ):
        pass


def test_a_mount_point_is_refused_before_anything_is_written() -> None:
    with (
        pytest.raises(CheckpointError, match="is a mount point"),
        CheckpointWriter(Path("/proc"), SMALL, {}, overwrite=True),
    ):
        pass


def test_a_place_where_nothing_can_be_created_is_named() -> None:
    with (
        pytest.raises(CheckpointError, match=r"cannot create a folder in /proc/\d+: No such file"),
        CheckpointWriter(Path("/proc/self/out"), SMALL, {}),
    ):
        pass


def test_hostile_descriptions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be a side file"):
        CheckpointWriter(tmp_path / "out", SMALL, {"../config.json": b""})
    with pytest.raises(CheckpointError, match="complex128, which safetensors files cannot hold"):
        CheckpointWriter(tmp_path / "out", [TensorEntry("c", "complex128", (1,), 16)], {})
    with pytest.raises(CheckpointError, match="given twice"):
        CheckpointWriter(tmp_path / "out", SMALL * 2, {})
    assert list(tmp_path.iterdir()) == []
