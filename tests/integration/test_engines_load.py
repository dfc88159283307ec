"""A load of an engine's model: what is left of the model when no peer delivers it."""

from typing import Any

import pytest
import torch

import modelexpress as mx
from modelexpress.engines.model_load import ModelLoad, PeerLoadFailed
from tests.unit.test_engines_state import PACKAGES, Model


def test_what_the_model_computed_for_itself_survives_a_failure(registry: str) -> None:
    model: Any = Model()
    layer = model.layers[0]
    layer.table.fill_(2.0)
    settings = mx.Settings(registry=registry, worker_grpc_port=0)
    with mx.Worker(settings=settings) as worker:
        load = ModelLoad(mx.SourceIdentity(model_name="nobody's"), 0, settings, worker, PACKAGES)
        with pytest.raises(PeerLoadFailed, match="no ready source"):
            load.receive(model)
    assert layer.table.tolist() == [2.0] * 3
    assert layer.quant_method.kernel.packed.tolist() == list(range(6))
    assert torch.equal(model.layers[1].quant_method.scales[0], torch.ones(2))
