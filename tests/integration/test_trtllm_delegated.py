"""Loading that TensorRT-LLM delegates: real sources, transports and registry; the engine is a double."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import modelexpress as mx
from modelexpress.engines.trtllm import delegated, undoing
from modelexpress.engines.trtllm.delegated_identity import delegated_identity
from modelexpress.engines.trtllm.presharded import RUNTIME_ALIASES
from modelexpress.errors import PartialModel
from modelexpress.weights.load import load
from modelexpress.weights.rank_tensors import rank_tensors
from tests.support import trtllm_engine_double as engine
from tests.support.trtllm_rank import RankProcess


def test_a_replica_takes_transformed_weights_and_becomes_a_source(registry: str, tmp_path: Path) -> None:
    whole, other = engine.checkpoint(tmp_path / "whole"), engine.checkpoint(tmp_path / "other", seed=7)
    named = partial(RankProcess, "delegated", registry, "d/two", MX_MODEL_REVISION="r1")
    logs = str(tmp_path / "logs")
    with ExitStack() as stack:
        first = [stack.enter_context(named(whole, r, 2)) for r in range(2)]
        given = [rank.loaded() for rank in first]
        second = [stack.enter_context(named(other, r, 2, MX_TRANSFER_LOG_DIR=logs)) for r in range(2)]
        taken = [rank.loaded() for rank in second]
        for rank in first:
            rank.tell("cleanup")
            assert rank.loaded()["offers"][0].endswith("closed")
            rank.kill()
        with named(other, 1, 2) as third:
            last = third.loaded()
    for source, target in zip(given, taken, strict=True):
        assert (source["preloaded"], source["reads"], source["steps"]) == (False, 1, 1)
        assert (target["preloaded"], target["reads"], target["steps"]) == (True, 0, 0)
        assert target["output"] == source["output"]
        assert target["offers"] == source["offers"]
    assert (last["preloaded"], last["output"]) == (True, given[1]["output"])
    for number in range(2):
        text = (tmp_path / "logs" / f"rank{number}.log").read_text()
        found = re.findall(r"\[Worker\s+(\d+)\].*?RDMA transfer complete:\s+(\d+)\s+tensors,\s+([0-9.]+)\s+GB", text)
        assert [(worker, count) for worker, count, _ in found] == [(str(number), str(5 * engine.LAYERS))]


@pytest.fixture
def source_of(registry: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, torch.Tensor]]]:
    """Makes this process a source, and returns its tensors; targets here offer nothing."""
    monkeypatch.setenv("MX_SOURCE_QUERY_TIMEOUT", "0")
    monkeypatch.setenv("MX_MODEL_REVISION", "r1")
    monkeypatch.setattr(delegated, "process_worker", lambda *_: None)
    engine.install()
    settings = mx.Settings(registry=registry, worker_grpc_port=0)
    with ExitStack() as stack:

        def publish(copies: int = 1) -> dict[str, torch.Tensor]:
            tensors = rank_tensors(_transformed(3, copies), RUNTIME_ALIASES)
            publication = mx.publish(tensors, delegated_identity(IDENTITY, 1, "r1"), settings=settings)
            assert stack.enter_context(publication).wait_ready(20)
            return tensors

        yield publish
    engine.uninstall()


@pytest.fixture
def source(source_of: Callable[..., dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A source of this process, and its tensors; targets here offer nothing."""
    return source_of()


IDENTITY = engine.SourceIdentity("d/one")


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("identity", "options"),
    [
        (replace(IDENTITY, model_fingerprint="beef"), {}),
        (replace(IDENTITY, options={"quantization": "fp8"}), {}),
        (replace(IDENTITY, transform_abi_id="abi-2"), {}),
        (replace(IDENTITY, transform_abi_id="ABI-1"), {}),
        (replace(IDENTITY, rank=1), {}),
        (IDENTITY, {"post_transform_protocol_version": 2}),
        (IDENTITY, {"allow_post_transform_weights": False}),
    ],
)
def test_whatever_differs_leaves_the_model_alone(
    identity: engine.SourceIdentity, options: dict[str, Any], registry: str, tmp_path: Path
) -> None:
    def prepare(model: engine.Model) -> None:
        pytest.fail("the structure was changed, with nobody to receive from")

    model = engine.Model(engine.Mapping())
    loading = engine.DelegatingMxCheckpointLoader(registry)
    options = {"prepare_post_transform_receiver": prepare, **options}
    engine.load_delegated(model, loading, str(engine.checkpoint(tmp_path)), identity, **options)
    assert not loading.preloaded
    assert loading.mx_loader.transform_protocol_version is None


def test_a_peer_fills_the_model_and_aliases_see_it(
    source: dict[str, torch.Tensor], registry: str, tmp_path: Path
) -> None:
    model: Any = engine.Model(engine.Mapping())
    loading = engine.DelegatingMxCheckpointLoader(f"http://{registry}/")
    engine.load_delegated(model, loading, str(tmp_path / "nothing"), IDENTITY)
    assert loading.preloaded
    assert loading.mx_loader.transform_protocol_version == 1
    assert engine.output_of(model) == engine.output_of(_transformed(3))
    assert model.layers[0].next_attn is model.layers[1].attn
    assert not any("next_" in name for name in source)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("flaw", ["a structure of its own", "a callback that fails"])
def test_a_model_that_does_not_fit_is_loaded_natively(flaw: str, registry: str, tmp_path: Path) -> None:
    def prepare(model: engine.Model) -> None:
        if flaw == "a callback that fails":
            raise KeyError(flaw)
        model.register_parameter("extra", torch.nn.Parameter(torch.ones(3)))

    model = engine.Model(engine.Mapping())
    loading = engine.DelegatingMxCheckpointLoader(registry)
    folder = str(engine.checkpoint(tmp_path, seed=5))
    engine.load_delegated(model, loading, folder, IDENTITY, prepare_post_transform_receiver=prepare)
    assert not loading.preloaded
    assert engine.output_of(model) == engine.output_of(_transformed(5))


@pytest.mark.parametrize("copies", [1, 300])
def test_weights_that_arrive_changed_are_overwritten_natively(
    copies: int, source_of: Callable[..., dict[str, torch.Tensor]], registry: str, tmp_path: Path
) -> None:
    """The transfer fails after something was written; what the engine gets is as a native load makes it.

    The checkpoint holds no `alpha`, which is small, or larger than a MiB.
    """
    spoil(source_of(copies))
    model, loading = engine.Model(engine.Mapping(), copies=copies), engine.DelegatingMxCheckpointLoader(registry)
    folder = str(engine.checkpoint(tmp_path, seed=5))
    engine.load_delegated(model, loading, folder, IDENTITY, prepare_post_transform_receiver=prepare_shapes)
    assert not loading.preloaded
    assert engine.output_of(model) == engine.output_of(_transformed(5))


def test_without_room_for_copies_a_transfer_that_fails_is_an_error(
    source: dict[str, torch.Tensor], registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could tell what the engine's loader leaves as the peer had it."""
    monkeypatch.setattr(undoing, "_room", lambda _: 0)
    spoil(source)
    reads = engine.HfWeightLoader.reads
    model, loading = engine.Model(engine.Mapping()), engine.DelegatingMxCheckpointLoader(registry)
    folder = str(engine.checkpoint(tmp_path, seed=5))
    with pytest.raises(PartialModel, match=r"start this replica again, with MX_P2P_METADATA=0 if") as caught:
        engine.load_delegated(model, loading, folder, IDENTITY, prepare_post_transform_receiver=prepare_shapes)
    assert "digest" in str(caught.value)
    assert engine.HfWeightLoader.reads == reads


@pytest.mark.usefixtures("source")
def test_without_room_for_copies_a_transfer_that_does_not_begin_is_no_error(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "_room", lambda _: 0)
    model, loading = engine.Model(engine.Mapping()), engine.DelegatingMxCheckpointLoader(registry)
    folder = str(engine.checkpoint(tmp_path, seed=5))
    engine.load_delegated(
        model, loading, folder, IDENTITY, prepare_post_transform_receiver=lambda model: model.setup_aliases()
    )
    assert not loading.preloaded
    assert engine.output_of(model) == engine.output_of(_transformed(5))


@pytest.mark.parametrize("way", ["by its content", "by its revision"])
def test_another_checkpoint_of_the_same_name_is_not_taken(
    way: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs call their last checkpoints alike, and the engine sees no difference."""
    monkeypatch.setenv("MX_SOURCE_QUERY_TIMEOUT", "0")
    settings = mx.Settings(registry=registry, worker_grpc_port=0)
    with ExitStack() as stack:
        engine.install()
        stack.callback(engine.uninstall)
        outputs = []
        for run, seed in (("a", 3), ("b", 5), ("b", 5)):
            worker = stack.enter_context(mx.Worker(settings=settings))
            monkeypatch.setattr(delegated, "process_worker", lambda *_, worker=worker: worker)
            if way == "by its revision":
                monkeypatch.setenv("MX_MODEL_REVISION", f"run-{run}")
            folder = engine.checkpoint(tmp_path / run / f"checkpoint-{way[3:]}", seed)
            model, loading = engine.Model(engine.Mapping()), engine.DelegatingMxCheckpointLoader(registry)
            engine.load_delegated(model, loading, str(folder), engine.SourceIdentity(str(folder)))
            assert all(publication.wait_ready(20) for publication in worker.publications)
            outputs.append((loading.preloaded, engine.output_of(model)))
    first, second = (engine.output_of(_transformed(seed)) for seed in (3, 5))
    assert outputs == [(False, first), (False, second), (True, second)]


@pytest.mark.usefixtures("source")
def test_another_tensor_parallel_size_is_refused_with_the_remedy(
    registry: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapping = engine.Mapping(1, 4)
    model, loading = engine.Model(mapping), engine.DelegatingMxCheckpointLoader(registry)
    identity = replace(IDENTITY, rank=1, tp_size=4, model_fingerprint="of a quarter")
    engine.load_delegated(model, loading, str(engine.checkpoint(tmp_path)), identity)
    assert not loading.preloaded
    assert "tensor parallel size 1, and this replica with tensor parallel size 4" in caplog.text
    assert "Start this replica with tensor parallel size 1" in caplog.text


def test_a_source_that_dies_in_the_middle_leaves_nothing_behind(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no checkpoint holds is as it was before: the post-load step, which runs after all, would be its second."""
    monkeypatch.setenv("MX_SOURCE_QUERY_TIMEOUT", "20")
    monkeypatch.setenv("MX_MODEL_REVISION", "r1")
    monkeypatch.setattr(delegated, "process_worker", lambda *_: None)
    engine.install()
    slow = {"MX_TRANSPORT": "tcp", "MX_CHUNK_BYTES": str(1 << 20), "MX_UPLINK_LIMIT": str(4 << 20)}
    there = engine.checkpoint(tmp_path / "there")
    model: Any = engine.Model(engine.Mapping())
    overwritten: list[float] = []
    with RankProcess("delegated", registry, "d/dies", there, 0, 1, "cpu", **slow) as peer:
        peer.loaded()

        def kill(done: int, total: int) -> None:
            if not overwritten and model.layers[0].attn.alpha != 1:
                assert done < total
                overwritten.append(float(model.layers[0].attn.alpha))
                peer.kill()

        monkeypatch.setattr(delegated, "load", partial(load, progress=kill))
        loading = engine.DelegatingMxCheckpointLoader(registry)
        folder = str(engine.checkpoint(tmp_path / "here", seed=5))
        engine.load_delegated(model, loading, folder, engine.SourceIdentity("/models/d/dies"))
    engine.uninstall()
    assert overwritten == [1.5]
    assert not loading.preloaded
    assert engine.output_of(model) == engine.output_of(_transformed(5))


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    """Change what is offered, so that targets refuse it once it has arrived."""
    list(tensors.values())[-1].view(-1)[5] += 1


def prepare_shapes(model: engine.Model) -> None:
    """Keep to shapes: this model's post-load step runs after all."""
    model.setup_aliases()
    for layer in model.layers:
        attention: Any = layer.get_submodule("attn")
        attention.weight_scale = torch.nn.Parameter(torch.empty(len(attention.weight), 1), requires_grad=False)


def _transformed(seed: int, copies: int = 1) -> engine.Model:
    model = engine.Model(engine.Mapping(), seed, copies)
    model.post_load_weights()
    return model
