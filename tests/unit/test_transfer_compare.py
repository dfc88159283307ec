"""The comparison: both ways, by name, before anything moves."""

import numpy as np
import pytest

from modelexpress.errors import ManifestMismatch
from modelexpress.transfer.compare import Wanted, compare
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.wire.records import TensorSpec


def source(*names: str, digests: tuple[int, ...] | None = None) -> Manifest:
    specs = tuple(TensorSpec(name, "float32", (4,), (1,), 0, 16 * i, 16) for i, name in enumerate(names))
    values = np.array(digests or range(len(names)), np.uint64)
    return Manifest(Scope.MODULE, 64, (16 * len(names),), specs, values)


def want(name: str, memory: int = -1, dtype: str = "float32", shape: tuple[int, ...] = (4,)) -> Wanted:
    return Wanted(name, dtype, shape, 16, hash(name) if memory < 0 else memory)


def test_equal_sets_agree() -> None:
    compare(source("a", "b"), [want("b"), want("a")])


def test_missing_and_unexpected_names_are_listed_at_once() -> None:
    with pytest.raises(ManifestMismatch, match=r"lacks 1 tensors \(c\).*lacks 1 tensors \(b\)") as caught:
        compare(source("a", "b"), [want("a"), want("c")])
    assert caught.value.missing == ("c",)
    assert caught.value.unexpected == ("b",)


@pytest.mark.parametrize("wanted", [want("a", dtype="int32"), want("a", shape=(2, 2))])
def test_other_dtypes_and_shapes_differ(wanted: Wanted) -> None:
    with pytest.raises(ManifestMismatch, match="'a' is float32") as caught:
        compare(source("a"), [wanted])
    assert len(caught.value.different) == 1


def test_a_tied_name_that_the_source_leaves_out_is_covered() -> None:
    compare(source("embed"), [want("embed", memory=1), want("head", memory=1)])


def test_names_tied_here_must_be_equal_there() -> None:
    tied = [want("embed", memory=1), want("head", memory=1)]
    compare(source("embed", "head", digests=(5, 5)), tied)
    with pytest.raises(ManifestMismatch, match="tied at the target"):
        compare(source("embed", "head", digests=(5, 6)), tied)
