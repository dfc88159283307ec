"""transformers without an engine: models from a peer, and from their folder where there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import modelexpress as mx
from modelexpress.engines.transformers import load_from_peer
from modelexpress.errors import NoSourceFound, PartialModel
from tests.support.moe_checkpoint import write_experts

TOKENS = torch.arange(1, 17).reshape(1, -1)


@pytest.fixture
def worker(registry: str) -> Iterator[mx.Worker]:
    with mx.Worker(registry, settings=mx.Settings(worker_grpc_port=0)) as own:
        yield own


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(TOKENS).logits
    return found


@pytest.fixture
def expected(checkpoint: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(checkpoint).eval())


def without_weights(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "elsewhere" / checkpoint.name
    folder.mkdir(parents=True)
    shutil.copy(checkpoint / "config.json", folder)
    return folder


@pytest.mark.parametrize("experts", [False, True], ids=["dense", "stacked experts"])
def test_the_first_reads_its_folder_and_the_second_needs_no_weights_there(
    registry: str,
    worker: mx.Worker,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experts: bool,
) -> None:
    monkeypatch.setenv("MX_MODEL_REVISION", "1")
    # Transformers stacks the experts that a checkpoint has one by one.
    folder = write_experts(checkpoint, tmp_path / "experts") if experts else checkpoint
    expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    first = load_from_peer(folder, registry=registry, worker=worker)
    assert torch.equal(logits(first), expected)
    assert worker.publications[0].wait_ready(20)
    second = load_from_peer(without_weights(folder), registry=registry)
    assert torch.equal(logits(second), expected)


def test_tied_weights_stay_tied_and_the_way_to_generate_is_the_folders(
    registry: str, worker: mx.Worker, checkpoint: Path, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(checkpoint, tie_word_embeddings=True)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.generation_config.update(eos_token_id=[5, 7], do_sample=True, temperature=0.6)
    made.save_pretrained(tmp_path / "tied")
    for way in ("storage", "peer"):
        found = load_from_peer(tmp_path / "tied", registry=registry, worker=worker if way == "storage" else None)
        assert found.lm_head.weight is found.model.embed_tokens.weight
        assert torch.equal(logits(found), logits(made.eval()))
        assert (found.generation_config.eos_token_id, found.generation_config.temperature) == ([5, 7], 0.6)
        if way == "storage":
            assert worker.publications[0].wait_ready(20)


def test_a_folder_that_lacks_some_of_the_model_is_not_filled_up_with_random_numbers(
    registry: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = write_experts(checkpoint, tmp_path / "experts")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PartialModel, match=r"lacks tensors of the model.*'model\.norm\.weight'"):
        load_from_peer(folder, registry=registry)


def test_a_folder_that_is_served_has_no_buffers_which_are_computed(
    registry: str, checkpoint: Path, expected: torch.Tensor
) -> None:
    identity = mx.SourceIdentity(model_name="served")
    with mx.publish_folder(checkpoint, identity, registry=registry, settings=mx.Settings(worker_grpc_port=0)) as served:
        assert served.wait_ready(20)
        model = load_from_peer(AutoConfig.from_pretrained(checkpoint), identity=identity, registry=registry)
    assert torch.equal(logits(model), expected)


def test_other_weights_under_the_same_name_are_not_taken(
    registry: str, worker: mx.Worker, checkpoint: Path, tmp_path: Path
) -> None:
    from modelexpress.cli.demo_model import build_demo_model

    load_from_peer(checkpoint, registry=registry, worker=worker)
    assert worker.publications[0].wait_ready(20)
    retrained = build_demo_model(tmp_path / "again" / checkpoint.name, scale="tiny", seed=1)
    model = load_from_peer(retrained, registry=registry)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(retrained).eval()))


def test_without_peer_and_weights_it_says_so(registry: str, checkpoint: Path) -> None:
    with pytest.raises(NoSourceFound, match="mx sources"):
        load_from_peer(without_weights(checkpoint), registry=registry)
