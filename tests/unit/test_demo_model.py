"""The demonstration model: complete, repeatable, and with logits that tell weights apart."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelexpress.cli.demo_model import build_demo_model, demo_logits, logits_fingerprint
from modelexpress.errors import CheckpointError, ConfigurationError
from modelexpress.weights.checkpoint import Checkpoint

PROMPT = "A model begins as a file"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_model(tmp_path_factory.mktemp("demo") / "model", scale="tiny")


def logits_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return demo_logits(model, AutoTokenizer.from_pretrained(folder), PROMPT)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_has_two_shards_and_an_index(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        assert len({tensor.file for tensor in checkpoint.tensors.values()}) == 2
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"bfloat16"}
        assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
        assert Path("tokenizer.json") in checkpoint.side_files


def test_its_logits_are_sane(folder: Path) -> None:
    logits = logits_of(folder)
    assert (logits.dtype, logits.shape) == (torch.float32, (512,))
    assert bool(logits.isfinite().all())
    assert 0.1 < logits.std().item() < 10


def test_its_logits_repeat_and_tell_weights_apart(folder: Path, tmp_path: Path) -> None:
    fingerprint = logits_fingerprint(logits_of(folder))
    assert len(fingerprint) == 12
    assert fingerprint == logits_fingerprint(logits_of(folder))
    other = build_demo_model(tmp_path / "other", seed=1, scale="tiny")
    assert fingerprint != logits_fingerprint(logits_of(other))


@pytest.mark.parametrize("text", ["Hello, world", "Wörter, 言葉 and 🚂\n\ttabs", ""])
def test_its_tokenizer_encodes_any_text(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_equal_seeds_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    assert content(build_demo_model(tmp_path / "again", scale="tiny")) == content(folder)


def test_a_complete_folder_is_used_again(folder: Path) -> None:
    before = folder.stat()
    build_demo_model(folder, scale="tiny")
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_or_a_damaged_demonstration_is_replaced(folder: Path, tmp_path: Path) -> None:
    other = build_demo_model(tmp_path / "model", seed=1, scale="tiny")
    build_demo_model(other, scale="tiny")
    assert content(other) == content(folder)
    (other / "model-00002-of-00002.safetensors").unlink()
    build_demo_model(other, scale="tiny")
    assert content(other) == content(folder)


def test_somebody_elses_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(CheckpointError, match="is not empty"):
        build_demo_model(tmp_path, scale="tiny")
    assert content(tmp_path).keys() == {"config.json"}


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'huge'; use one of demo, tiny"):
        build_demo_model(tmp_path, scale="huge")  # type: ignore[arg-type]
