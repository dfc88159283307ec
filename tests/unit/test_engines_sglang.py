"""What of the adapter for SGLang needs no SGLang: its configuration, and which models are told apart."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelexpress.engines.sglang.loader import settings_of
from modelexpress.engines.sglang.place import Place, place_of
from modelexpress.engines.sglang.suitability import unsuitable, unsuitable_model
from modelexpress.settings import Settings
from modelexpress.transport.nixl import NixlTransport
from modelexpress.transport.select import available


def load_config(url: str | None = None, transport: str = "nixl") -> Any:
    return SimpleNamespace(modelexpress_url=url, modelexpress_transport=transport)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_EXPRESS_URL", raising=False)
    monkeypatch.setenv("MX_SERVER_ADDRESS", "registry:1")
    monkeypatch.setenv("MX_TRANSPORT", "tcp")
    monkeypatch.delenv("MX_TRANSPORT_FIRST", raising=False)


@pytest.mark.parametrize(
    ("url", "registry"),
    [(None, "registry:1"), ("", "registry:1"), ("other:2", "other:2"), ("http://other:2/", "other:2")],
)
def test_the_url_of_the_configuration_wins_over_the_environment(url: str | None, registry: str) -> None:
    settings = settings_of(load_config(url), {})
    assert (settings.registry, settings.transport) == (registry, "tcp")


def test_a_transport_that_this_package_has_not_is_named_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "modelexpress"):
        assert settings_of(load_config(), {"modelexpress_config": None}).transport == "tcp"
        assert not caplog.messages
        assert settings_of(load_config(transport="transfer_engine"), {}).transport == "tcp"
    assert "'transfer_engine'" in caplog.text


@pytest.mark.parametrize("given", ['{"transport": "nixl"}', {"url": "registry:1", "transport": "nixl"}])
def test_a_transport_that_was_chosen_comes_first(
    given: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MX_TRANSPORT")
    monkeypatch.setenv("MX_TRANSPORT_FIRST", "tcp")
    # A network card that is not there, and a library that may not be.
    monkeypatch.setattr(NixlTransport, "unavailable", lambda self: None)
    settings = settings_of(load_config(), {"modelexpress_config": given})
    assert [transport.name for transport in available(settings).transports] == ["nixl", "local", "tcp"]
    assert not caplog.messages


@pytest.mark.parametrize("given", [None, "{}", '{"url": "registry:1"}', {}])
def test_a_default_is_no_choice(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(load_config(), {"modelexpress_config": given}).transport_first == ""
    monkeypatch.setenv("MX_TRANSPORT_FIRST", "local")
    assert settings_of(load_config(), {"modelexpress_config": given}).transport_first == "local"


def test_a_chosen_transport_that_does_not_work_here_is_said_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(load_config(), {"modelexpress_config": '{"transport": "nixl"}'})
    assert [transport.name for transport in available(settings).transports] == ["tcp"]
    assert "'nixl' of --modelexpress-config cannot be used here" in caplog.text
    assert "MX_TRANSPORT asks for tcp" in caplog.text


def parallel(**fields: Any) -> Any:
    """Return a stand-in for SGLang's sizes and ranks, with those of one rank alone where they are not given."""
    sizes = {"tp_size": 1, "pp_size": 1, "attn_dp_size": 1, "nnodes": 1}
    return SimpleNamespace(**sizes | {"tp_rank": 0, "pp_rank": 0, "dp_rank": None} | fields)


@pytest.mark.parametrize(
    ("sizes", "hosts"),
    [
        ({"tp_size": 4}, [[(0, 0), (0, 1), (0, 2), (0, 3)]]),
        ({"tp_size": 4, "nnodes": 2}, [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]),
        ({"tp_size": 2, "pp_size": 2, "nnodes": 2}, [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]),
        ({"tp_size": 1, "pp_size": 4, "nnodes": 2}, [[(0, 0), (1, 0)], [(2, 0), (3, 0)]]),
        ({"tp_size": 2, "pp_size": 2, "nnodes": 4}, [[(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)]]),
    ],
)
def test_a_worker_knows_its_host_and_whether_it_is_the_first_one_there(
    sizes: dict[str, int], hosts: list[list[tuple[int, int]]]
) -> None:
    for node_rank, ranks in enumerate(hosts):
        places = [place_of(parallel(**sizes, pp_rank=stage, tp_rank=rank)) for stage, rank in ranks]
        assert places == [Place(node_rank, first) for first in (True, *[False] * (len(ranks) - 1))]


def test_of_replicas_side_by_side_the_first_one_shares() -> None:
    assert place_of(parallel(dp_rank=0)).first
    assert not place_of(parallel(dp_rank=1)).first
    # The second host of one replica, whose ranks of attention are numbered through.
    second = parallel(tp_size=4, nnodes=2, attn_dp_size=4, tp_rank=2, dp_rank=2)
    assert place_of(second) == Place(1, True)


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
