"""Live weights of TensorRT-LLM: roles, names, flags, and what must never hurt the engine."""

import contextlib
import logging
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelexpress as mx
from modelexpress import trtllm_live_transfer as live
from modelexpress.engines.trtllm import live as live_loading
from modelexpress.engines.trtllm import live_publish
from modelexpress.engines.trtllm.naming import live_identity, model_name_of
from modelexpress.engines.trtllm.native import native, without_unknown
from modelexpress.engines.trtllm.place import Place, place_of
from modelexpress.engines.trtllm.presharded import mark_presharded
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.engines.trtllm.roles import Role, offers_weights, role_of
from modelexpress.errors import ConfigurationError, NoSourceFound
from modelexpress.settings import Settings
from tests.support import trtllm_engine_double as engine

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with no variable of the engine's set, and waits for no source."""
    for name in ("MODEL_EXPRESS_URL", "MX_SERVER_ADDRESS", "MODEL_EXPRESS_SOURCE", "MODEL_EXPRESS_TARGET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL_NAME", "org/unit")
    monkeypatch.setenv("MX_SOURCE_QUERY_TIMEOUT", "0")
    # One is made per process: it would be that of all tests.
    monkeypatch.setattr(live_publish, "process_worker", lambda *_: object())


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where ranks write their logs; the next test has a folder of its own."""
    monkeypatch.setenv("MX_TRANSFER_LOG_DIR", str(tmp_path / "logs"))
    own = logging.getLogger("modelexpress")
    level = own.level
    yield tmp_path / "logs"
    write_rank_log(0, Settings())
    own.setLevel(level)


@pytest.fixture
def installed() -> Iterator[None]:
    """The engine's double is where the engine would be."""
    engine.install()
    yield
    engine.uninstall()


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models that come as far as being offered, which then fails."""
    monkeypatch.setenv("MODEL_EXPRESS_URL", NOWHERE)
    offered: list[object] = []

    def note(model: object, *_: object, **__: object) -> None:
        offered.append(model)
        raise ConfigurationError("this test offers nothing")

    monkeypatch.setattr(live_publish, "offer_unprocessed", note)
    return offered


@pytest.mark.parametrize(
    ("variables", "role", "is_source"),
    [
        ({}, Role.FOUND_OUT, False),
        ({"MODEL_EXPRESS_URL": "http://r:1"}, Role.FOUND_OUT, True),
        ({"MX_SERVER_ADDRESS": "r:1"}, Role.FOUND_OUT, True),
        ({"MODEL_EXPRESS_URL": "r:1", "MODEL_EXPRESS_TARGET": "1"}, Role.TARGET, False),
        ({"MODEL_EXPRESS_URL": "r:1", "MODEL_EXPRESS_TARGET": "0"}, Role.FOUND_OUT, True),
        ({"MODEL_EXPRESS_URL": "r:1", "MODEL_EXPRESS_TARGET": "true"}, Role.FOUND_OUT, True),
        ({"MODEL_EXPRESS_SOURCE": "1"}, Role.SOURCE, True),
        ({"MODEL_EXPRESS_SOURCE": "false"}, Role.FOUND_OUT, False),
        ({"MODEL_EXPRESS_SOURCE": "1", "MODEL_EXPRESS_TARGET": "1"}, Role.TARGET, False),
    ],
)
def test_a_flag_counts_only_when_it_is_1(variables: dict[str, str], role: Role, is_source: bool) -> None:
    settings = Settings.read(variables)
    assert role_of(settings) is role
    assert offers_weights(settings) is is_source


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama", "llama"),
        ("/cache/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39/", "meta-llama/Llama-3.1-8B"),
        ("/models/my-llama/", "my-llama"),
        ("./local", "local"),
        ("a/b/c", "c"),
    ],
)
def test_folders_become_names(given: str, name: str) -> None:
    assert model_name_of(given) == name


def test_the_place_is_the_mappings_else_the_models_else_the_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = engine.Mapping(rank=3, tp_size=4, moe_ep_size=-1)
    told = Place(rank=3, local_rank=3, tensor_parallel_size=4)
    assert place_of(mapping) == place_of(None, engine.Model(mapping)) == told
    assert place_of() == Place()
    world = types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(Get_rank=lambda: 5, Get_size=lambda: 8))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", world)
    assert place_of() == Place(rank=5, local_rank=5, tensor_parallel_size=8)


def test_the_engine_may_add_to_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    original = live._build_trtllm_identity

    def wrapped(*args: Any, **kwargs: Any) -> mx.SourceIdentity:
        identity = original(*args, **kwargs)
        identity.extra_parameters["layout"] = "post_transform"  # type: ignore[index]  # the engine does so
        return identity

    before = live._build(model_name="m").source_id
    monkeypatch.setattr(live, "_build_trtllm_identity", wrapped)
    assert live._build(model_name="m").source_id != before


def test_sizes_and_revision_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {live_identity("m", tp_size=size).source_id for size in (1, 2, 4)}
    monkeypatch.setenv("MX_MODEL_REVISION", "r2")
    ids.add(live_identity("m", tp_size=1).source_id)
    assert len(ids) == 4


def test_layers_cut_nothing_while_the_flag_is_set() -> None:
    mapping = engine.Mapping(rank=1, tp_size=2)
    model = engine.Model(mapping)
    layer: Any = model.layers[0].get_submodule("attn")
    full = torch.randn(8 * engine.WIDTH, engine.WIDTH)
    shard = full.chunk(2)[1]
    mark_presharded(model, True)
    layer.load("weight", shard)
    assert torch.equal(layer.weight, shard)
    mark_presharded(model, False)
    layer.load("weight", full)
    assert torch.equal(layer.weight, shard)


def test_a_registry_that_is_not_there_is_a_runtime_error_to_the_engine() -> None:
    client = live.MxClient(server_url=f"http://{NOWHERE}")
    with pytest.raises(RuntimeError, match=NOWHERE):
        client.list_sources(identity=live_identity("m"))
    client.close()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("told", ["0", "1"])
def test_without_a_source_whole_weights_are_read_and_cut(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine marks layers before it asks; what a checkpoint gives it is whole all the same."""
    monkeypatch.setenv("MX_SERVER_ADDRESS", NOWHERE)
    monkeypatch.setenv("MODEL_EXPRESS_SOURCE", told)
    folder = engine.checkpoint(tmp_path)
    mapping = engine.Mapping(rank=1, tp_size=2)
    model, native_model = engine.Model(mapping), engine.Model(mapping, seed=5)
    monkeypatch.setenv("MX_P2P_METADATA", "0")
    engine.load_presharded(model, live.MxLiveCheckpointLoader(), str(folder), mapping)
    native_model.load_weights(engine.HfWeightLoader().load_weights(str(folder), mapping))
    native_model.post_load_weights()
    assert engine.output_of(model) == engine.output_of(native_model)


@pytest.mark.usefixtures("installed")
def test_a_target_that_is_told_to_be_one_does_not_load_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_TARGET", "1")
    reads = engine.HfWeightLoader.reads
    with pytest.raises(mx.ModelExpressError, match=NOWHERE):
        live.MxLiveCheckpointLoader(NOWHERE).load_weights("folder", model=engine.Model(engine.Mapping()))
    with pytest.raises(ConfigurationError, match="no model to fill"):
        live.MxLiveCheckpointLoader(NOWHERE).load_weights("folder")
    assert engine.HfWeightLoader.reads == reads


def test_a_source_that_is_told_to_be_one_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_SOURCE", "1")
    with pytest.raises(NoSourceFound, match="MODEL_EXPRESS_SOURCE"):
        live.MxLiveWeightLoader(NOWHERE).load_weights("folder", model=engine.Model(engine.Mapping()))


@pytest.mark.usefixtures("installed")
def test_model_reaches_no_loader_that_does_not_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MX_P2P_METADATA", "0")
    folder, model = engine.checkpoint(tmp_path), engine.Model(engine.Mapping())
    given = live.MxLiveCheckpointLoader(NOWHERE).load_weights(str(folder), mapping=None, model=model, use_x=True)
    assert len(given) == 3 * engine.LAYERS

    def knows(checkpoint_dir: str, model: object) -> None: ...

    def hands_on(checkpoint_dir: str, **kwargs: object) -> None: ...

    assert without_unknown(knows, {"model": 1, "x": 2}) == {"model": 1}
    assert without_unknown(hands_on, {"model": 1, "x": 2}) == {"x": 2}


def test_an_engine_that_is_not_installed_is_told_apart_from_one_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="tensorrt_llm is not installed"):
        native("hf.weight_loader", "HfWeightLoader")
    broken = tmp_path / "tensorrt_llm"
    broken.mkdir()
    (broken / "__init__.py").write_text("import a_library_of_its_own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_of_its_own"):
        native("hf.weight_loader", "HfWeightLoader")


def test_a_missing_package_is_told_apart_from_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", NOWHERE)

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'nixl'", name="nixl")

    def failing(*_: object, **__: object) -> None:
        raise OSError("no memory left for this")

    monkeypatch.setattr(live_publish, "offer_unprocessed", missing)
    live.publish_model_params(engine.Model(engine.Mapping()))
    assert "the package 'nixl' is not installed" in caplog.text
    assert "defect" not in caplog.text
    monkeypatch.setattr(live_publish, "offer_unprocessed", failing)
    live.publish_model_params(engine.Model(engine.Mapping()))
    assert "no memory left for this" in caplog.text


@pytest.mark.parametrize("early", [True, False])
def test_a_failed_publication_is_never_made_up_for_after_the_transforms(
    early: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", NOWHERE)
    offered: list[object] = []

    def fail_once(model: nn.Module, *_: object, **__: object) -> Any:
        offered.append(model)
        raise ConfigurationError("the worker is closed")

    monkeypatch.setattr(live_publish, "offer_unprocessed", fail_once)
    model = engine.Model(engine.Mapping())
    if early:
        live.publish_model_params(model)
    model.post_load_weights()
    live.publish_from_worker(_worker(model))
    if early:
        live.publish_model_params(model)
    assert len(offered) == early
    assert "the post-load step is over" in caplog.text


def test_a_model_that_cannot_have_a_post_load_step_may_be_offered_by_its_worker(
    offers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.Conv2d(1, 1, 1), nn.BatchNorm1d(2))
    live.publish_from_worker(_worker(model))
    live.publish_from_worker(_worker(None))
    assert offers == [model]
    assert "no model of torch" in caplog.text


def _with(**hung: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    for name, value in hung.items():
        setattr(model[0], name, value)
    return model


def _with_attribute_of_parameter() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight.owner = _QuantMethod()  # type: ignore[attr-defined]  # as engines hang loaders on parameters
    return model


class _QuantMethod:
    """Transforms the weights of the module that it hangs on, under a name that nobody knows."""

    def pack(self, module: nn.Module) -> None: ...


class _Own(nn.Linear):
    """A layer of an engine's own."""


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (_with(quant_method=_QuantMethod()), "_QuantMethod at '0.quant_method'"),
        (_with(kernels={"a": [_QuantMethod()]}), "_QuantMethod at '0.kernels'"),
        (_with(pack=_QuantMethod().pack), "_QuantMethod.pack at '0.pack'"),
        (_with_attribute_of_parameter(), "_QuantMethod at '_parameters'"),
        (nn.Sequential(_Own(2, 2)), "_Own at '0'"),
        (_Own(2, 2), "_Own, the model itself,"),
    ],
)
def test_a_model_that_may_have_been_changed_is_not_offered_late_nor_later(
    model: nn.Module, found: str, offers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    live.publish_from_worker(_worker(model))
    live.publish_model_params(model)
    assert offers == []
    assert f"{found} may have changed its weights" in caplog.text
    assert "publish_model_params must be called before it" in caplog.text


def test_an_attempt_that_fails_before_it_begins_is_the_only_one(
    offers: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine.Model(engine.Mapping())
    with monkeypatch.context() as patch:
        patch.setattr(model.model_config, "mapping", types.SimpleNamespace(rank="not yet"))
        live.publish_model_params(model)
    live.publish_model_params(model)
    live.publish_from_worker(_worker(model))
    assert offers == []


def test_a_model_is_offered_at_the_registry_that_its_loader_was_given(
    tmp_path: Path, installed: None, monkeypatch: pytest.MonkeyPatch, offers: list[object]
) -> None:
    """Also where the environment names another one, or none."""
    asked: list[str] = []
    monkeypatch.setattr(live_publish, "process_worker", lambda _, settings: asked.append(settings.registry))
    folder, mapping = str(engine.checkpoint(tmp_path)), engine.Mapping()
    for named in ("elsewhere:1", ""):
        monkeypatch.setenv("MODEL_EXPRESS_URL", named)
        if not named:
            monkeypatch.delenv("MODEL_EXPRESS_URL")
        engine.load_presharded(engine.Model(mapping), live.MxLiveCheckpointLoader(f"http://{NOWHERE}"), folder, mapping)
        model = engine.Model(mapping)
        with contextlib.suppress(mx.ModelExpressError):
            live.MxLiveWeightLoader(f"http://{NOWHERE}/").load_weights(folder, model=model)
        live.publish_model_params(model)
    assert asked == [NOWHERE] * 4


def test_a_model_without_a_name_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", NOWHERE)
    monkeypatch.delenv("MODEL_NAME")
    live.publish_model_params(nn.Linear(2, 2))
    assert "set MODEL_NAME" in caplog.text


class _Broken:
    """A worker whose engine is not up."""

    @property
    def engine(self) -> object:
        raise RuntimeError("the engine is not up")


@pytest.mark.parametrize("what", [None, "a model", object(), 5, _Broken()])
def test_publishing_what_is_no_model_raises_nothing(what: Any) -> None:
    live.publish_model_params(what)
    live.publish_from_worker(what)
    assert live.after_post_load(what) == ()
    assert live.after_post_load(nn.Linear(1, 1)) == ()


def test_each_rank_writes_a_file_which_the_next_run_writes_anew(tmp_path: Path) -> None:
    own = logging.getLogger("modelexpress")
    before = list(own.handlers)
    (tmp_path / "rank7.log").write_text("of another run\n")
    settings = Settings(transfer_log_dir=str(tmp_path))
    for word in ("first", "second"):
        write_rank_log(7, settings)
        own.info(word)
    thread = threading.Thread(target=own.info, args=("later",))
    thread.start()
    thread.join()
    write_rank_log(7, Settings(transfer_log_dir=str(tmp_path / "elsewhere")))
    own.info("elsewhere")
    write_rank_log(7, settings)
    own.info("again")
    write_rank_log(7, Settings())
    own.info("nowhere")
    text = (tmp_path / "rank7.log").read_text()
    assert [line.rsplit(" ", 1)[-1] for line in text.splitlines()] == ["first", "second", "later", "again"]
    assert "elsewhere" in (tmp_path / "elsewhere" / "rank7.log").read_text()
    assert own.handlers == before


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    write_rank_log(0, Settings(transfer_log_dir=str(tmp_path / "file" / "logs")))
    assert "MX_TRANSFER_LOG_DIR" in caplog.text


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("loader", [live.MxLiveCheckpointLoader, live.MxLiveWeightLoader])
def test_an_error_that_nobody_foresaw_is_in_the_log_of_the_rank(
    loader: Any, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_loading, "await_source", lambda *_: 1 / 0)
    folder, mapping = str(engine.checkpoint(tmp_path / "whole")), engine.Mapping(1, 2)
    with contextlib.suppress(ZeroDivisionError):
        loader(NOWHERE).load_weights(folder, mapping=mapping, model=engine.Model(mapping))
    text = (logs / "rank1.log").read_text()
    assert "ZeroDivisionError: division by zero" in text
    assert ("reading the checkpoint instead" in text) == (loader is live.MxLiveCheckpointLoader)


@pytest.mark.usefixtures("installed")
def test_that_the_checkpoint_is_read_instead_is_in_the_log_of_the_rank(logs: Path, tmp_path: Path) -> None:
    folder, model = str(engine.checkpoint(tmp_path / "whole")), engine.Model(engine.Mapping())
    live.MxLiveCheckpointLoader(NOWHERE).load_weights(folder, mapping=engine.Mapping(), model=model)
    assert "reading the checkpoint instead: " in (logs / "rank0.log").read_text()


@pytest.mark.usefixtures("installed")
def test_the_checkpoint_loader_has_what_the_engine_asks_of_one() -> None:
    loader = live.MxLiveCheckpointLoader("r:1")
    assert loader.checkpoint_format == "mx-p2p"
    assert isinstance(loader.get_default_weight_loader(), live.MxLiveWeightLoader | type(loader.weight_loader))
    assert loader.load_config("folder", extra=1) == {"folder": "folder", "extra": 1}
    model = engine.Model(engine.Mapping())
    mapper = loader.get_initialized_weight_mapper(model, model.model_config)
    assert (loader.weight_mapper, mapper.model) == (mapper, model)
    loader.cleanup()
    assert (loader.weight_mapper, mapper.model) == (None, None)


def _worker(model: object) -> Any:
    space = types.SimpleNamespace
    return space(engine=space(model_engine=space(model=model)))
