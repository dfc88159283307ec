"""Two checkpoints of one name have one fingerprint only where they are the same."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelexpress.cli.demo_model import build_demo_model
from modelexpress.engines.fingerprint import folder_fingerprint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_model(tmp_path_factory.mktemp("checkpoint") / "model", scale="tiny")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "elsewhere"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_copy_has_the_same_whatever_its_times_are(model: Path, copy: Path) -> None:
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    assert folder_fingerprint(copy) == folder_fingerprint(model)


@pytest.mark.parametrize("part", ["gate_proj", "input_layernorm", "embed_tokens"])
def test_weights_that_were_trained_on_are_told_apart(model: Path, copy: Path, part: str) -> None:
    found = set()
    for factor in (1.0, 1.5):
        for path in shards(model):
            tensors = load_file(path)
            changed = {name: tensor * factor if part in name else tensor for name, tensor in tensors.items()}
            save_file(changed, copy / path.name, {"format": "pt"})
        found.add(folder_fingerprint(copy))
    assert len(found) == 2


def test_another_configuration_is_told_apart(model: Path, copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"bos_token_id": 0', '"bos_token_id": 3'))
    assert folder_fingerprint(copy) != folder_fingerprint(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.gguf"])
def test_a_file_whose_tensors_are_not_known_is_sampled_throughout(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = bytearray(torch.arange(1 << 19, dtype=torch.int32).numpy().tobytes())
    path.write_bytes(content)
    first = folder_fingerprint(tmp_path)
    content[1 << 20 : (1 << 20) + 4] = b"more"
    path.write_bytes(content)
    assert folder_fingerprint(tmp_path) != first


def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert len(folder_fingerprint(tmp_path)) == 16
