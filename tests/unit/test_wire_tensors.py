"""Tensors as columns are the tensors that they were made of."""

import dataclasses
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Tensors

numbers = st.integers(0, 3)
specs = st.builds(
    TensorSpec,
    st.text(max_size=3),
    st.sampled_from(["uint8", "int8"]),
    st.tuples(numbers),
    st.tuples(numbers),
    numbers,
    st.integers(0, 1 << 40),
    numbers,
    st.booleans(),
)
lists = st.lists(specs, max_size=8, unique_by=lambda spec: spec.name)


@given(lists)
def test_columns_give_back_every_tensor(given_specs: list[TensorSpec]) -> None:
    tensors = Tensors.of(given_specs)
    assert list(tensors) == given_specs
    assert [tensors[position] for position in range(len(tensors))] == given_specs
    assert tensors.nbytes.tolist() == [spec.nbytes for spec in given_specs]
    assert Tensors.of(tensors) is tensors


@given(lists, st.randoms(use_true_random=False))
def test_names_are_found_in_any_order(given_specs: list[TensorSpec], random: Random) -> None:
    tensors = Tensors.of(given_specs)
    names = [*tensors.names, "not there"]
    random.shuffle(names)
    assert [-1 if name == "not there" else tensors.index[name] for name in names] == tensors.positions(names).tolist()
    assert tensors.positions(tensors.names).tolist() == list(range(len(tensors)))


@given(lists)
def test_moved_tensors_are_alike_and_not_equal(given_specs: list[TensorSpec]) -> None:
    tensors = Tensors.of(given_specs)
    moved = tensors.moved(tensors.regions, tensors.offsets + 1)
    assert tensors.alike(moved)
    assert (tensors == moved) is (len(tensors) == 0)
    assert [spec.offset for spec in moved] == [spec.offset + 1 for spec in given_specs]


def test_equality_does_not_depend_on_how_layouts_are_listed() -> None:
    one = TensorSpec("a", "uint8", (1,), (1,), 0, 0, 1)
    two = TensorSpec("b", "int8", (1,), (1,), 0, 1, 1)
    tensors = Tensors.of([one, two])
    listed_twice = dataclasses.replace(
        tensors, layouts=(*tensors.layouts[::-1], tensors.layouts[0]), layout_index=np.array([2, 0])
    )
    assert listed_twice == tensors
    assert tensors != Tensors.of([one, dataclasses.replace(two, dtype="bool")])


def test_counterparts_have_the_same_name_and_layout() -> None:
    tensors = Tensors.of([TensorSpec(name, "uint8", (2, 2), (2, 1), 0, 0, 4) for name in "abcd"])
    other = Tensors.of(
        [TensorSpec(name, "uint8", (2, 2), (1, 2) if name == "b" else (2, 1), 0, 0, 4) for name in "dxba"]
    )
    here, there = tensors.counterparts(other)
    assert [(tensors.names[a], other.names[b]) for a, b in zip(here, there, strict=True)] == [("d", "d"), ("a", "a")]
