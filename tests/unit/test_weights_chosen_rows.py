"""Which rows a target has of some tensors: checked against the model, before any source is asked."""

import numpy as np
import pytest
import torch

import modelexpress as mx
from modelexpress.errors import ConfigurationError, UnsupportedModel
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.transfer.rows import Rows
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.chosen_rows import choose_rows, travelling_bytes
from modelexpress.weights.target import Target
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Tensors


def test_rows_are_known_by_position_and_under_every_name_of_a_tied_tensor() -> None:
    weight = torch.zeros(3, 4)
    listed = catalogue({"a": torch.zeros(2), "b": weight, "c": weight})
    assert choose_rows(listed, {"c": (5, 8)}) == {1: Rows(5, 8), 2: Rows(5, 8)}
    assert choose_rows(listed, {}) == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"x": (0, 3)}, "'x', which the model has not"),
        ({"w": (-1, 2)}, "rows -1:2 of 'w' are none"),
        ({"w": (3, 3)}, "rows 3:3 of 'w' are none"),
        ({"w": (4, 2)}, "rows 4:2 of 'w' are none"),
        ({"w": (4, 8)}, r"rows 4:8 of the whole tensor, 4 in all, but has the shape \[3, 4\]"),
        ({"scalar": (0, 1)}, r"but has the shape \[\]"),
        ({"w": (0, 3), "tied": (1, 4)}, "'tied' shall be rows 1:4, and a tensor tied to it rows 0:3"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused(rows: dict[str, tuple[int, int]], message: str) -> None:
    weight = torch.zeros(3, 4)
    with pytest.raises(ConfigurationError, match=message):
        Target({"w": weight, "tied": weight, "scalar": torch.zeros(())}, rows=rows)


def test_rows_in_memory_that_another_tensor_shares_in_part_are_refused() -> None:
    block = torch.zeros(6, 4)
    with pytest.raises(UnsupportedModel, match="'low', of which some rows shall be loaded, shares"):
        Target({"low": block[:4], "high": block[3:]}, rows={"low": (0, 4)})
    Target({"low": block[:3], "high": block[3:]}, rows={"low": (0, 3)})
    Target({"left": block[:, :2], "right": block[:, 2:]}, rows={"left": (0, 6)})


def test_a_target_with_some_rows_is_no_source() -> None:
    identity = mx.SourceIdentity(model_name="test/rows")
    with (
        mx.Worker("127.0.0.1:9", settings=mx.Settings(worker_grpc_port=0)) as worker,
        pytest.raises(ConfigurationError, match="leave `worker` out"),
    ):
        mx.load({"w": torch.zeros(3)}, identity, rows={"w": (0, 3)}, worker=worker)


def test_of_rows_the_chunks_that_hold_them_travel() -> None:
    specs = [TensorSpec(name, "uint8", (10, 10), (10, 1), 0, at, 100) for name, at in (("a", 0), ("b", 100))]
    manifest = Manifest(Scope.MODULE, 30, (200,), Tensors.of(specs), np.zeros(8, np.uint64))
    listed = catalogue({"b": torch.zeros(2, 10), "a": torch.zeros(10, 10)})
    assert travelling_bytes(manifest, listed, {0: Rows(2, 4)}).tolist() == [100, 60]
    assert travelling_bytes(manifest, listed, {0: Rows(8, 10)}).tolist() == [100, 40]
    assert travelling_bytes(manifest, listed, {}).tolist() == [100, 100]
