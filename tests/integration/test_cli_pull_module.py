"""A folder pulled from a live module: what a checkpoint holds, in the order that a checkpoint has."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import modelexpress as mx
from tests.support.materials import SETTINGS, new_identity


@pytest.fixture
def configuration(checkpoint: Path, tmp_path: Path) -> Path:
    """The small model's files without its tensors, and with the two ends of the model tied."""
    folder = tmp_path / "configuration"
    folder.mkdir()
    for path in checkpoint.glob("*.json"):
        if not path.name.endswith(".index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def test_a_live_model_becomes_a_folder_that_transformers_load(
    registry: str, configuration: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(configuration))
    transposed = model.model.layers[0].mlp.up_proj.weight
    transposed.data = transposed.data.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert dict(model.named_buffers()).keys() - model.state_dict().keys(), "it has buffers that no checkpoint holds"
    identity = new_identity()
    with mx.publish(model, identity, registry=registry, files=configuration, settings=SETTINGS) as publication:
        assert publication.wait_ready(10)
        mx.pull_folder(identity.model_name, tmp_path / "copy", registry=registry, settings=SETTINGS)
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as content:
        assert set(content.keys()) == model.state_dict().keys() - {"lm_head.weight"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    expected = dict(model.named_parameters())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_pull_that_is_interrupted_in_the_middle_leaves_nothing(registry: str, tmp_path: Path) -> None:
    identity = new_identity()
    tensors = {f"layer.{number}": torch.rand(1 << 16) for number in range(8)}

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            assert list(tmp_path.glob(".mx-partial-*"))
            raise KeyboardInterrupt

    with mx.publish(tensors, identity, registry=registry, settings=SETTINGS) as publication:
        assert publication.wait_ready(10)
        with pytest.raises(KeyboardInterrupt):
            mx.pull_folder(identity.model_name, tmp_path / "copy", registry=registry, progress=interrupt)
        assert publication.readers == []
    assert list(tmp_path.iterdir()) == []
