"""Live weights of TensorRT-LLM, each rank a process: the engine is a double, all else is real."""

import gc
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

import modelexpress as mx
from modelexpress.engines.trtllm import live_publish
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.peer import PublicationState
from modelexpress.trtllm_live_transfer import after_post_load, publish_model_params
from tests.support import trtllm_engine_double as engine
from tests.support.tensor_parallel_rank import TensorParallelRank, make_checkpoint
from tests.support.trtllm_rank import RankProcess
from tests.support.waiting import wait_until


@pytest.mark.parametrize("way", ["presharded", "live"])
def test_ranks_take_their_shards_from_the_first_replica_which_none_was_there_for(
    way: str, registry: str, tmp_path: Path
) -> None:
    name = f"live/{way}"
    whole, other = engine.checkpoint(tmp_path / "whole"), engine.checkpoint(tmp_path / "other", seed=7)
    logs = str(tmp_path / "logs")
    with ExitStack() as stack:
        first = [stack.enter_context(RankProcess(way, registry, name, whole, rank, 2)) for rank in range(2)]
        given = [rank.loaded() for rank in first]
        options = {"MX_TRANSFER_LOG_DIR": logs, "MX_SOURCE_QUERY_TIMEOUT": "20"}
        second = [
            stack.enter_context(RankProcess(way, registry, name, other, rank, 2, "cpu", **options)) for rank in range(2)
        ]
        taken = [rank.loaded() for rank in second]
        first[0].tell("worker")
        assert first[0].loaded()["offers"] == given[0]["offers"]
    for source, target in zip(given, taken, strict=True):
        assert (source["preloaded"], source["reads"], source["presharded"]) == (False, 1, False)
        assert (target["preloaded"], target["reads"], target["presharded"]) == (True, 0, True)
        assert target["output"] == source["output"]
        assert target["steps"] == source["steps"] == 1
        assert target["offers"] == source["offers"]
        assert source["offers"][0].endswith("ready")
        assert target["probed"] is (True if way == "live" else None)
    assert given[0]["output"] != given[1]["output"]
    _check_evidence(tmp_path / "logs", size=2)


def test_another_tensor_parallel_size_is_refused_with_the_remedy(registry: str, tmp_path: Path) -> None:
    whole = engine.checkpoint(tmp_path / "whole")
    logs = tmp_path / "logs"
    with RankProcess("presharded", registry, "live/sizes", whole, 0, 2) as source:
        source.loaded()
        with RankProcess("live", registry, "live/sizes", whole, 0, 4, MX_TRANSFER_LOG_DIR=str(logs)) as target:
            assert target.loaded()["preloaded"] is False
    text = (logs / "rank0.log").read_text()
    assert "tensor parallel size 2, and this replica with tensor parallel size 4" in text
    assert "Start this replica with tensor parallel size 2" in text


def test_a_target_outlives_a_source_that_is_killed(registry: str, tmp_path: Path) -> None:
    """Whether the registry has missed it or not, the engine reads the checkpoint then, cut as it should be."""
    whole = engine.checkpoint(tmp_path / "whole")
    with RankProcess("live", registry, "live/killed", whole, 1, 2) as source:
        given = source.loaded()
        source.kill()
        with RankProcess("live", registry, "live/killed", whole, 1, 2) as target:
            found = target.loaded()
    assert (found["preloaded"], found["presharded"]) == (False, False)
    assert found["output"] == given["output"]


def test_several_targets_at_once_all_take_from_the_source(registry: str, tmp_path: Path) -> None:
    """A source has one reader at a time here, and live targets pass nothing on: the others wait their turn."""
    whole, other = engine.checkpoint(tmp_path / "whole"), engine.checkpoint(tmp_path / "other", seed=7)
    role = {"MODEL_EXPRESS_TARGET": "1", "MX_SOURCE_QUERY_TIMEOUT": "60"}
    with ExitStack() as stack:
        targets = [
            stack.enter_context(RankProcess("presharded", registry, "live/many", other, 0, 1, "cpu", **role))
            for _ in range(3)
        ]
        source = stack.enter_context(RankProcess("presharded", registry, "live/many", whole))
        given = source.loaded()
        for target in targets:
            taken = target.loaded()
            assert (taken["preloaded"], taken["offers"]) == (True, [])
            assert taken["output"] == given["output"]


def test_what_is_offered_ends_with_its_model(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", registry)
    monkeypatch.setenv("MODEL_NAME", "live/gone")
    with mx.Worker(settings=mx.Settings(registry=registry, worker_grpc_port=0)) as worker:
        monkeypatch.setattr(live_publish, "process_worker", lambda *_: worker)
        model = engine.Model(engine.Mapping())
        publish_model_params(model)
        (publication,) = worker.publications
        assert publication.wait_ready(20)
        del model
        gc.collect()
        wait_until(lambda: publication.state is PublicationState.CLOSED)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process writes the logs of its ranks."""
    monkeypatch.setenv("MX_TRANSFER_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("MODEL_NAME", "live/logs")
    yield tmp_path
    write_rank_log(0, mx.Settings())


def test_the_log_of_a_rank_says_that_its_source_has_ended(
    registry: str, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_EXPRESS_URL", registry)
    with mx.Worker(settings=mx.Settings(registry=registry, worker_grpc_port=0)) as worker:
        monkeypatch.setattr(live_publish, "process_worker", lambda *_: worker)
        model = nn.Linear(1024, 1024)
        publish_model_params(model)
        with torch.no_grad():
            model.weight.mul_(2)
        assert after_post_load(model) == ("weight",)
    assert "is withdrawn: the post-load step wrote into 1 of its tensors" in (logs / "rank0.log").read_text()


def test_the_log_of_a_rank_says_that_no_registry_knows_of_its_source(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread finds that out, when the engine has gone on."""
    nowhere = "127.0.0.1:1"
    monkeypatch.setenv("MODEL_EXPRESS_URL", nowhere)
    with mx.Worker(settings=mx.Settings(registry=nowhere, worker_grpc_port=0)) as worker:
        monkeypatch.setattr(live_publish, "process_worker", lambda *_: worker)
        model = nn.Linear(4, 4)
        publish_model_params(model)
        wait_until(lambda: "the registry cannot be told of source" in (logs / "rank0.log").read_text())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [2, 4])
def test_a_real_tensor_parallel_model_computes_the_same(size: int, registry: str, tmp_path: Path) -> None:
    """transformers cuts the layers by its plan; a group that has loaded another checkpoint receives this one's."""
    here, there = make_checkpoint(tmp_path / "here", 1), make_checkpoint(tmp_path / "there", 2)
    common = {"MODEL_EXPRESS_URL": registry, "MODEL_NAME": f"live/llama-{size}"}
    waits = {"MODEL_EXPRESS_TARGET": "1", "MX_SOURCE_QUERY_TIMEOUT": "120"}
    with ExitStack() as stack:
        meeting = tmp_path / "sources"
        sources = [TensorParallelRank("source", here, meeting, rank, size, **common) for rank in range(size)]
        given = [stack.enter_context(source).answer() for source in sources]
        meeting = tmp_path / "targets"
        targets = [TensorParallelRank("target", there, meeting, rank, size, **common, **waits) for rank in range(size)]
        taken = [stack.enter_context(target).answer() for target in targets]
    for source, target in zip(given, taken, strict=True):
        assert target["received"]
        assert target["before"] != source["before"]
        assert target["logits"] == source["logits"] != source["before"]
        assert target["shapes"] == source["shapes"]
        assert source["shapes"]["model.layers.0.self_attn.q_proj.weight"] == [64 // size, 64]


def _check_evidence(folder: Path, size: int) -> None:
    """Look for what the engine's own tests look for in the files of ranks."""
    assert sorted(path.name for path in folder.iterdir()) == [f"rank{rank}.log" for rank in range(size)]
    for rank in range(size):
        text = (folder / f"rank{rank}.log").read_text()
        ((matched, wanted),) = re.findall(r"Matched\s+(\d+)/(\d+)\s+params", text)
        ((number, moved),) = re.findall(r"Rank\s+(\d+):\s+transferred\s+(\d+)\s+params", text)
        assert int(number) == rank
        assert matched == wanted == moved == str(4 * engine.LAYERS)
        assert not re.search("falling back to disk|partial fallback|size mismatch|still missing", text, re.IGNORECASE)
