"""Which recipes are read, and which are refused: what transformers does to a tensor, and what its rows are named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from modelexpress.errors import CheckpointError
from modelexpress.weights.recipe import Recipe, Single, Stack, source_of
from modelexpress.weights.stored_tensor import StoredTensor
from modelexpress.weights.transformers_recipes import recipes_for

STACK = "model.layers.0.mlp.experts.down_proj"
ROWS = [f"model.layers.0.mlp.experts.{row}.down_proj.weight" for row in range(12)]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    conversion_mapping.get_checkpoint_conversion_mapping("qwen3_moe")
    # Of the model within it there shall be none.
    known = conversion_mapping._checkpoint_conversion_mapping_cache
    monkeypatch.setitem(known, "Qwen3MoeModel", [])
    monkeypatch.setitem(known, "Converted", [])

    class Converted(Qwen3MoeForCausalLM):  # type: ignore[misc]
        """Its own conversions are found by its name."""

        __module__ = Qwen3MoeForCausalLM.__module__

    sizes = {"hidden_size": 8, "moe_intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.device("meta"):
        return Converted(Qwen3MoeConfig(**sizes, num_hidden_layers=1, num_experts=12, vocab_size=8))


def recipe(model: Any, sources: list[str], steps: Sequence[ConversionOps], stored: Sequence[str]) -> Recipe:
    target = "mlp.experts.down_proj"
    converter = WeightConverter(source_patterns=sources, target_patterns=target, operations=list(steps))
    conversion_mapping._checkpoint_conversion_mapping_cache["Converted"] = [converter]
    return recipes_for(model, stored)[STACK]


def test_rows_are_in_the_order_of_their_numbers(model: Any) -> None:
    found = recipe(model, ["mlp.experts.*.down_proj.weight"], [MergeModulelist(dim=0)], ROWS[::-1])
    assert found.stacked
    source = source_of(STACK, found, tensors(ROWS))
    assert isinstance(source, Stack)
    assert [stored.name for stored in source.parts[0]] == ROWS
    assert source.shape == (12, 8, 8)


@pytest.mark.parametrize(
    "steps",
    [
        [MergeModulelist(dim=1)],
        [Transpose(0, 1), MergeModulelist(dim=0)],
        [Transpose(0, 1, check_dims=True), MergeModulelist(dim=0)],
        [MergeModulelist(dim=0), Transpose(1, 2)],
        [MergeModulelist(dim=0), Interleave(dim=1)],
        [Concatenate(dim=0)],
        [MergeModulelist(dim=0), Concatenate(dim=1)],
    ],
    ids=str,
)
def test_other_steps_are_refused_by_name(model: Any, steps: list[ConversionOps]) -> None:
    found = recipe(model, ["mlp.experts.*.down_proj.weight"], steps, ROWS)
    assert str(steps) in found.obstacle
    with pytest.raises(CheckpointError, match="cannot be read from the files as it is"):
        source_of(STACK, found, tensors(ROWS))


@pytest.mark.parametrize("steps", [[Concatenate(dim=1)], [MergeModulelist(dim=0), Concatenate(dim=2)]], ids=str)
def test_parts_that_lie_otherwise_are_refused_by_name(model: Any, steps: list[ConversionOps]) -> None:
    up = [name.replace("down_proj", "up_proj") for name in ROWS]
    found = recipe(model, ["mlp.experts.*.down_proj.weight", "mlp.experts.*.up_proj.weight"], steps, ROWS + up)
    assert str(steps) in found.obstacle


def test_what_is_transposed_only_where_it_does_not_fit_is_taken_where_it_fits(model: Any) -> None:
    steps = [Transpose(1, 2, check_dims=True)]
    assert recipe(model, ["mlp.experts.down_proj"], steps, [STACK]) == Recipe(((STACK,),))
    assert "Transpose" in recipe(model, ["mlp.experts.down_proj"], [Transpose(1, 2)], [STACK]).obstacle
    assert "Transpose" in recipe(model, ["mlp.experts.*.down_proj.weight"], steps, ROWS).obstacle


def test_two_tensors_for_one_are_refused(model: Any) -> None:
    twice = ["model.norm.weight", "norm.weight"]
    with pytest.raises(CheckpointError, match=r"more than once, as 'model\.norm\.weight' and 'norm\.weight'"):
        source_of("model.norm.weight", recipes_for(model, twice)["model.norm.weight"], tensors(twice))


def test_models_of_others_are_stored_under_their_own_names() -> None:
    assert recipes_for({"a": torch.ones(1)}, ["a", "b"]) == {"a": Recipe((("a",),)), "b": Recipe((("b",),))}
    assert source_of("a", Recipe((("a",),)), tensors(["a"])) == Single(tensors(["a"])["a"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["e.0.w", "e.2.w"], "none of the numbers 1"),
        (["e.1.w"], "none of the numbers 0"),
        (["e.0.w", "e.999999999.w"], "none of the numbers 1"),
        (["e.w"], "does not say which"),
        (["e.0.0.w"], "does not say which"),
        (["e.0.w", "e.00.w"], "does not say which"),
        (["e." + 5000 * "9" + ".w"], "does not say which"),
    ],
    ids=["a gap", "no first", "far away", "no number", "two numbers", "twice", "no number of an expert"],
)
def test_names_that_do_not_say_which_rows_they_are(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        source_of("e.w", Recipe((tuple(names),), stacked=True), tensors(names))


def tensors(names: Sequence[str]) -> dict[str, StoredTensor]:
    """Return what a checkpoint says of tensors."""
    return {name: StoredTensor(name, "float32", (8, 8), 256, Path("model.safetensors"), 0) for name in names}
