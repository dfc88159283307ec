"""Which models vLLM's adapter leaves to vLLM; configurations are stand-ins with the fields that vLLM's have."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelexpress.engines.vllm.suitability import unsuitable, unsuitable_model
from modelexpress.settings import Settings


def configuration(**changed: Any) -> Any:
    fields = {
        "offload_config": SimpleNamespace(uva=SimpleNamespace(cpu_offload_gb=0)),
        "cache_config": SimpleNamespace(),
        "model_config": SimpleNamespace(enable_sleep_mode=False),
        "parallel_config": SimpleNamespace(enable_eplb=False, enable_elastic_ep=False),
    }
    return SimpleNamespace(**{**fields, **changed})


def test_an_ordinary_engine_is_suitable() -> None:
    assert unsuitable(configuration(), Settings()) is None


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"offload_config": SimpleNamespace(uva=SimpleNamespace(cpu_offload_gb=4))}, "--cpu-offload-gb"),
        ({"cache_config": SimpleNamespace(cpu_offload_gb=4)}, "--cpu-offload-gb"),
        ({"model_config": SimpleNamespace(enable_sleep_mode=True)}, "--enable-sleep-mode"),
        ({"parallel_config": SimpleNamespace(enable_eplb=True)}, "--enable-eplb"),
        ({"parallel_config": SimpleNamespace(enable_eplb=False, enable_elastic_ep=True)}, "elastic"),
    ],
)
def test_weights_that_move_while_the_engine_runs_are_not_shared(changed: dict[str, Any], option: str) -> None:
    reason = unsuitable(configuration(**changed), Settings())
    assert reason is not None
    assert option in reason


def test_without_peer_metadata_nobody_is_asked() -> None:
    settings = Settings.read({"MX_P2P_METADATA": "0"})
    assert "MX_P2P_METADATA=0" in (unsuitable(configuration(), settings) or "")


def test_what_is_quantised_while_it_is_loaded_cannot_be_processed_before() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert unsuitable_model(model) is None
    model[0].quant_method = SimpleNamespace(uses_meta_device=True)
    assert "'0' is quantised while it is loaded" in (unsuitable_model(model) or "")
    assert "'weight' gets its memory" in (unsuitable_model(torch.nn.Linear(2, 2, device="meta")) or "")
