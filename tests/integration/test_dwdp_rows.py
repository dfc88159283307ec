"""Which tensors have a row for each expert is decided for a layer, and gates are found where they are."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery


def test_layers_with_all_experts_keep_what_only_looks_like_a_part(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_rows:whole", 2)


def test_what_a_gate_adds_to_scores_is_gathered_where_it_was_loaded_in_part(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_rows:part", 2)


def test_rows_of_equal_values_are_gathered_too(nursery: Nursery, tmp_path: Path) -> None:
    nursery.run(tmp_path, "dwdp_rows:constant", 2)


def test_what_is_the_same_on_all_ranks_is_no_part(nursery: Nursery, tmp_path: Path) -> None:
    for numbers, features, same in nursery.run(tmp_path, "dwdp_rows:alike", 2):
        assert numbers.startswith("0: experts.mix has 4 rows, as many as a rank stores experts, and they are the same")
        assert features.startswith("0: experts.mix has 40 rows")
        assert same.startswith("0: experts.bias has 4 rows")
        assert same.endswith("or all ranks have loaded the same experts")


def test_small_tensors_without_memory(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_rows:without_memory", 2):
        assert told == "0: experts.bias has no memory yet: load this rank's experts first"


@pytest.mark.parametrize("name", ["afmoe", "hunyuan", "longcat", "jetmoe"])
def test_models_of_transformers_whose_gate_is_further_in(nursery: Nursery, tmp_path: Path, name: str) -> None:
    found = nursery.run(tmp_path, "dwdp_gates:share", 2, name=name)
    layers = {"afmoe": [1, 2], "hunyuan": [0, 1, 2], "longcat": [0, 1], "jetmoe": [0, 1, 2]}[name]
    blocks = [".mlp", ".self_attention.experts"] if name == "jetmoe" else [".mlp"]
    assert [sorted(names) for names in found] == [
        [f"model.layers.{layer}{block}" for layer in layers for block in blocks]
    ] * 2


def test_weights_for_different_numbers_of_experts(nursery: Nursery, tmp_path: Path) -> None:
    for told in nursery.run(tmp_path, "dwdp_gates:refuse", 2, name="longcat with more", total=12):
        assert told.startswith(
            "model.layers.0.mlp: experts.gate_up_proj has 12 rows, and experts.down_proj 8: all stacked weights"
        )
