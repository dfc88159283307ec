"""The comparison: both ways, by name, before anything moves."""

import numpy as np
import pytest

from modelexpress.errors import ManifestMismatch
from modelexpress.transfer.compare import Wanted, compare
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Layout, Tensors


def source(*names: str, digests: tuple[int, ...] | None = None) -> Manifest:
    specs = Tensors.of(TensorSpec(name, "float32", (4,), (1,), 0, 16 * i, 16) for i, name in enumerate(names))
    values = np.array(digests or range(len(names)), np.uint64)
    return Manifest(Scope.MODULE, 64, (16 * len(names),), specs, values)


def want(*names: str, memories: tuple[int, ...] = (), dtype: str = "float32", shape: tuple[int, ...] = (4,)) -> Wanted:
    layouts = (Layout("bool", (), (), 1), Layout(dtype, shape, (), 16))
    numbers = np.array(memories or range(len(names)), np.int64)
    return Wanted(names, layouts, np.ones(len(names), np.int64), numbers)


def test_equal_sets_agree() -> None:
    compare(source("a", "b"), want("b", "a"))


def test_missing_and_unexpected_names_are_listed_at_once() -> None:
    with pytest.raises(ManifestMismatch, match=r"lacks 1 tensors \(c\).*lacks 1 tensors \(b\)") as caught:
        compare(source("a", "b"), want("a", "c"))
    assert caught.value.missing == ("c",)
    assert caught.value.unexpected == ("b",)


@pytest.mark.parametrize("wanted", [want("a", dtype="int32"), want("a", shape=(2, 2))])
def test_other_dtypes_and_shapes_differ(wanted: Wanted) -> None:
    with pytest.raises(ManifestMismatch, match="'a' is float32") as caught:
        compare(source("a"), wanted)
    assert len(caught.value.different) == 1


def test_a_tied_name_that_the_source_leaves_out_is_covered() -> None:
    compare(source("embed"), want("embed", "head", memories=(1, 1)))


def test_names_tied_here_must_be_equal_there() -> None:
    tied = want("embed", "head", memories=(1, 1))
    compare(source("embed", "head", digests=(5, 5)), tied)
    with pytest.raises(ManifestMismatch, match="tied at the target"):
        compare(source("embed", "head", digests=(5, 6)), tied)


def test_a_tied_name_does_not_cover_another_memory() -> None:
    with pytest.raises(ManifestMismatch) as caught:
        compare(source("embed"), want("embed", "head", "norm", memories=(0, 0, 1)))
    assert caught.value.missing == ("norm",)


def test_nothing_agrees_with_nothing() -> None:
    compare(source(), want())
    with pytest.raises(ManifestMismatch, match="the source lacks 1 tensors"):
        compare(source(), want("a"))
    with pytest.raises(ManifestMismatch, match="the target lacks 1 tensors"):
        compare(source("a"), want())
