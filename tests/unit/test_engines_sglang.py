"""What of the adapter for SGLang needs no SGLang: its configuration, and which models are told apart."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelexpress.engines.sglang.loader import settings_of
from modelexpress.engines.sglang.suitability import unsuitable, unsuitable_model
from modelexpress.settings import Settings


def load_config(url: str | None = None, transport: str = "nixl") -> Any:
    return SimpleNamespace(modelexpress_url=url, modelexpress_transport=transport)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_EXPRESS_URL", raising=False)
    monkeypatch.setenv("MX_SERVER_ADDRESS", "registry:1")
    monkeypatch.setenv("MX_TRANSPORT", "tcp")


@pytest.mark.parametrize(
    ("url", "registry"),
    [(None, "registry:1"), ("", "registry:1"), ("other:2", "other:2"), ("http://other:2/", "other:2")],
)
def test_the_url_of_the_configuration_wins_over_the_environment(url: str | None, registry: str) -> None:
    settings = settings_of(load_config(url))
    assert (settings.registry, settings.transport) == (registry, "tcp")


def test_a_transport_that_this_package_has_not_is_named_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "modelexpress"):
        assert settings_of(load_config()).transport == "tcp"
        assert not caplog.messages
        assert settings_of(load_config(transport="transfer_engine")).transport == "tcp"
    assert "'transfer_engine'" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cpu_offload_gb": 4}, "--cpu-offload-gb"),
        ({"offload_group_size": 2}, "--offload-group-size"),
        ({"enable_memory_saver": True}, "--enable-memory-saver"),
        ({"enable_eplb": True}, "--enable-eplb"),
    ],
)
def test_weights_that_move_while_the_engine_runs_are_not_shared(options: dict[str, Any], reason: str) -> None:
    found = unsuitable(options, Settings())
    assert found is not None
    assert reason in found


def test_usual_options_and_models_are_suitable() -> None:
    options = {"cpu_offload_gb": 0, "offload_group_size": -1, "enable_eplb": False, "elastic_ep_backend": None}
    assert unsuitable(options, Settings()) is None
    assert unsuitable_model(torch.nn.Linear(2, 2)) is None


def test_peers_can_be_switched_off() -> None:
    assert "MX_P2P_METADATA" in (unsuitable({}, Settings(p2p_metadata=False)) or "")


def test_a_model_that_gets_its_memory_while_it_is_loaded_is_told_apart() -> None:
    assert "'weight'" in (unsuitable_model(torch.nn.Linear(2, 2, device="meta")) or "")
