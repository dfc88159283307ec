"""The names by which callers of TensorRT-LLM's integration import it, and what they may pass."""

import inspect
from pathlib import Path

import pytest

import modelexpress
import modelexpress.engines.trtllm
import modelexpress.trtllm_loader
from modelexpress.engines.trtllm import MxTrtllmSourcePublisher, MxTrtllmTargetLoader, create_trtllm_from_mx
from modelexpress.engines.trtllm.target import DEFAULT_WAIT
from modelexpress.errors import ConfigurationError
from modelexpress.settings import Settings

NAMES = ("MxTrtllmSourcePublisher", "MxTrtllmTargetLoader", "create_trtllm_from_mx")


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_import_a_name_leads_to_the_same_object(name: str) -> None:
    homes = (modelexpress, modelexpress.trtllm_loader, modelexpress.engines.trtllm)
    assert len({id(getattr(home, name)) for home in homes}) == 1


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(modelexpress.engines.trtllm, "no_such_name")
    assert set(NAMES) <= set(dir(modelexpress.engines.trtllm))


@pytest.mark.parametrize(
    ("called", "positional"),
    [
        (MxTrtllmSourcePublisher, ["checkpoint_dir", "model_name", "mx_server"]),
        (MxTrtllmTargetLoader, ["model_name", "mx_server", "output_dir", "build_config"]),
        (create_trtllm_from_mx, ["model_name", "mx_server", "output_dir", "build_config", "skip_build"]),
    ],
)
def test_arguments_have_the_names_and_the_order_that_callers_use(called: object, positional: list[str]) -> None:
    parameters = inspect.signature(called).parameters.values()  # type: ignore[arg-type]
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == positional


@pytest.mark.parametrize("address", ["host:9", "http://host:9", "https://host:9/"])
def test_prefixes_of_the_registry_are_stripped(address: str) -> None:
    assert MxTrtllmTargetLoader("m", address).mx_server == "host:9"
    assert MxTrtllmSourcePublisher("folder", "m", address).mx_server == "host:9"


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", "http://registry:1")
    monkeypatch.setenv("OUTPUT_DIR", "/data/out")
    monkeypatch.setenv("TRTLLM_MAX_BATCH_SIZE", "3")
    loader = MxTrtllmTargetLoader("m", build_config={"max_seq_len": "9"})
    assert loader.mx_server == "registry:1"
    assert (loader.checkpoint_dir, loader.engine_dir) == (Path("/data/out/checkpoint"), Path("/data/out/engine"))
    assert loader.build_config == {
        "gemm_plugin": "auto",
        "max_batch_size": 3,
        "max_input_len": 2048,
        "max_seq_len": "9",
    }
    assert loader.get_transfer_stats() == {"total_bytes": 0, "total_time": 0, "bandwidth_gbps": 0}


def test_how_long_a_source_is_waited_for() -> None:
    assert MxTrtllmTargetLoader("m", settings=Settings.read({})).wait == DEFAULT_WAIT
    assert MxTrtllmTargetLoader("m", settings=Settings.read({"MX_SOURCE_QUERY_TIMEOUT": "0"})).wait == 0
    assert MxTrtllmTargetLoader("m", wait=7, settings=Settings.read({"MX_SOURCE_QUERY_TIMEOUT": "0"})).wait == 7
    with pytest.raises(ConfigurationError, match="wait=-1"):
        MxTrtllmTargetLoader("m", wait=-1)
