"""The loader that TensorRT-LLM delegates to: what its weights are called, and what must never hurt the engine."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import modelexpress as mx
from modelexpress.engines.trtllm import MxModelLoader, delegated
from modelexpress.engines.trtllm.delegated_identity import delegated_identity, without_sizes
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.errors import ConfigurationError, IdentityError
from tests.support import trtllm_engine_double as engine

NOWHERE = "127.0.0.1:1"
IDENTITY = engine.SourceIdentity("org/unit", rank=1, tp_size=4, ep_size=-1, options={"kernel": "Fused"})


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine's double is where the engine would be, and this process has no worker."""
    monkeypatch.setenv("MX_SOURCE_QUERY_TIMEOUT", "0")
    monkeypatch.delenv("MX_MODEL_REVISION", raising=False)
    monkeypatch.setattr(delegated, "process_worker", lambda *_: None)
    engine.install()
    yield
    engine.uninstall()
    write_rank_log(0, mx.Settings())


class Native(engine.HfCheckpointLoader):
    """Gives out one value, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.value: dict[str, Any] = {"weights": object()}
        self.given: dict[str, Any] = {}
        self.weight_loader.load_weights = self._load  # type: ignore[method-assign]

    def _load(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> dict[str, Any]:
        self.given = {"checkpoint_dir": checkpoint_dir, "mapping": mapping, **kwargs}
        return self.value


def loader(checkpoint_loader: object, **options: Any) -> MxModelLoader:
    given: dict[str, Any] = {
        "model_config": object(),
        "load_config": object(),
        "checkpoint_loader": checkpoint_loader,
        "checkpoint_dir": "folder",
        "native_loader_kwargs": {"use_x": True, "model": "this must not arrive"},
        "mapping": engine.Mapping(1, 4),
        "source_identity": IDENTITY,
        "prepare_post_transform_receiver": lambda model: pytest.fail("nobody to receive from"),
        "transform_protocol_version": 1,
        "p2p_enabled": True,
        "mx_server_url": NOWHERE,
    }
    return MxModelLoader(**(given | options))


def test_the_identity_carries_the_engines_own_layout_version_and_abi() -> None:
    identity = delegated_identity(IDENTITY, 7)
    assert identity.model_name == "org/unit"
    assert identity.backend_framework is mx.BackendFramework.TRT_LLM
    sizes = (identity.tensor_parallel_size, identity.pipeline_parallel_size, identity.expert_parallel_size)
    assert sizes == (4, 1, 1)
    assert identity.dtype == "float32"
    found = dict(identity.extra_parameters)
    assert found.pop("trtllm_source_identity") == (
        '{"dtype":"torch.float32","ep_size":-1,"format_version":3,"model_fingerprint":"f00d",'
        '"options":{"kernel":"Fused"},"pp_size":1,"rank":1,"tp_size":4,"transform_abi_id":"abi-1"}'
    )
    assert len(found.pop("trtllm_source_identity_digest")) == 64
    assert found == {
        "trtllm_weight_layout": "post_transform",
        "trtllm_transform_protocol_version": "7",
        "trtllm_transform_abi_id": "abi-1",
    }


def test_whatever_differs_makes_another_identity_but_the_folder_of_the_model() -> None:
    others = [
        delegated_identity(IDENTITY, 2),
        delegated_identity(replace(IDENTITY, rank=2), 1),
        delegated_identity(replace(IDENTITY, transform_abi_id="abi-2"), 1),
        delegated_identity(replace(IDENTITY, transform_abi_id="ABI-1"), 1),
        delegated_identity(replace(IDENTITY, model_fingerprint="F00D"), 1),
        delegated_identity(replace(IDENTITY, options={"kernel": "fused"}), 1),
        delegated_identity(IDENTITY, 1, "r1"),
        delegated_identity(IDENTITY, 1, "R1"),
        delegated_identity(IDENTITY, 1),
    ]
    assert len({identity.source_id for identity in others}) == len(others)
    here, there = (replace(IDENTITY, model_name=f"/{host}/llama") for host in "ab")
    assert delegated_identity(here, 1).source_id == delegated_identity(there, 1).source_id


def test_checkpoints_of_one_name_are_told_apart_by_revision_or_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own name is the same in all of them, and so is all that the engine says."""

    def revision(folder: Path) -> str:
        return loader(Native(), checkpoint_dir=str(folder))._identity().revision

    here, copy, trained = (
        engine.checkpoint(tmp_path / name / "last", seed) for name, seed in zip("abc", (1, 1, 2), strict=True)
    )
    assert revision(here) == revision(copy) != revision(trained)
    assert "" not in (revision(here), revision(trained))
    assert revision(tmp_path / "no folder") == ""
    monkeypatch.setenv("MX_MODEL_REVISION", "run-a")
    assert revision(here) == revision(trained) == revision(tmp_path / "no folder") == "run-a"


def test_a_checkpoint_that_cannot_be_looked_at_is_loaded_natively(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    native = Native()
    assert loader(native, checkpoint_dir=str(tmp_path)).load_model(engine.Model(engine.Mapping())) is native.value
    assert "set MX_MODEL_REVISION" in caplog.text


def test_shards_of_the_same_weights_differ_in_nothing_but_sizes() -> None:
    wide = delegated_identity(replace(IDENTITY, rank=0, tp_size=2, model_fingerprint="shapes"), 1)
    other = delegated_identity(replace(IDENTITY, rank=0, tp_size=2, options={"kernel": "fused"}), 1)
    own = without_sizes(delegated_identity(IDENTITY, 1))
    assert without_sizes(replace(wide, tensor_parallel_size=4)) == own
    assert without_sizes(replace(other, tensor_parallel_size=4)) != own
    for text in ("", "[]", "{", "[" * 100_000):
        strange = replace(wide, extra_parameters={"trtllm_source_identity": text})
        assert without_sizes(strange) == strange


@pytest.mark.parametrize(
    ("identity", "version", "message"),
    [
        (object(), 1, "no to_dict"),
        (IDENTITY, None, "no version"),
        (replace(IDENTITY, transform_abi_id=None), 1, "transform_abi_id"),
        (engine.SourceIdentity("org/unit", options=cast(Any, object())), 1, "JSON"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_loaded_natively(identity: Any, version: Any, message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        delegated_identity(identity, version)
    native = Native()
    refusing = loader(native, source_identity=identity, transform_protocol_version=version)
    assert refusing.load_model(engine.Model(engine.Mapping())) is native.value
    refusing.publish_model(engine.Model(engine.Mapping()))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_native_value_is_returned_as_it_is(enabled: bool) -> None:
    native = Native()
    loading = loader(native, p2p_enabled=enabled)
    assert loading.load_model(engine.Model(engine.Mapping())) is native.value
    assert native.given == {"checkpoint_dir": "folder", "mapping": engine.Mapping(1, 4), "use_x": True}
    assert (loading.p2p_succeeded, loading.transform_protocol_version) == (False, None)


def test_nobody_is_asked_for_a_model_that_is_not_qualified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegated, "await_source", lambda *_: pytest.fail("the registry was asked"))
    monkeypatch.setattr(delegated, "publish", lambda *_, **__: pytest.fail("it was offered"))
    loading = loader(Native(), p2p_enabled=False)
    loading.load_model(engine.Model(engine.Mapping()))
    loading.publish_model(engine.Model(engine.Mapping()))


def test_without_the_engine_a_failure_says_so() -> None:
    engine.uninstall()
    with pytest.raises(ConfigurationError, match="tensorrt_llm is not installed"):
        loader(Native()).load_model(engine.Model(engine.Mapping()))


@pytest.mark.parametrize("error", [ConfigurationError("the worker is closed"), ZeroDivisionError("a defect")])
def test_a_publication_that_fails_hurts_nobody(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    class Idle:
        """A worker that offers nothing."""

        def publishes(self, source_id: str) -> bool:
            return False

    monkeypatch.setattr(delegated, "process_worker", lambda *_: Idle())
    monkeypatch.setattr(delegated, "publish", fail)
    loading = loader(Native())
    loading.publish_model(engine.Model(engine.Mapping()))
    assert "not becoming a source" in caplog.text
    loading.cleanup()


def test_cleanup_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck:
        """A publication that cannot be closed."""

        def close(self) -> None:
            raise OSError("no more descriptors")

    loading = loader(Native())
    loading.cleanup()
    loading._publication = Stuck()  # type: ignore[assignment]
    loading.cleanup()
    loading.cleanup()
    assert caplog.text.count("may be listed until") == 1


def test_a_load_that_fails_in_an_unforeseen_way_is_done_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegated, "await_source", lambda *_: 1 / 0)
    native = Native()
    assert loader(native).load_model(engine.Model(engine.Mapping())) is native.value


def test_what_cleaning_up_has_to_say_is_in_the_log_of_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        """A publication that cannot be closed."""

        def close(self) -> None:
            raise OSError("no more descriptors")

    monkeypatch.setenv("MX_TRANSFER_LOG_DIR", str(tmp_path))
    loading = loader(Native())
    loading._publication = Stuck()  # type: ignore[assignment]
    loading.cleanup()
    assert "no more descriptors" in (tmp_path / "rank1.log").read_text()
