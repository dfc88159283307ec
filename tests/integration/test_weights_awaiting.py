"""Waiting for a source: as long as asked, and a source of another size is named."""

import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import NoSourceFound, RegistryUnreachable
from modelexpress.identity import BackendFramework
from modelexpress.weights.awaiting import await_source


def _identity(name: str, size: int = 2, **fields: Any) -> mx.SourceIdentity:
    return mx.SourceIdentity(
        model_name=name,
        tensor_parallel_size=size,
        backend_framework=BackendFramework.TRT_LLM,
        dtype="bfloat16",
        **fields,
    )


def _settings(registry: str, wait: float) -> mx.Settings:
    return mx.Settings(registry=registry, source_query_timeout=wait, worker_grpc_port=0)


def test_nobody_is_said_at_once_where_nobody_waits(registry: str) -> None:
    with pytest.raises(NoSourceFound, match=r"rank 3 is registered after 0 s"):
        await_source(_identity("awaited/nobody"), 3, _settings(registry, 0))


def test_nobody_is_held_up_for_long_by_default() -> None:
    assert mx.Settings().source_query_timeout <= 5


def test_a_registry_that_is_not_there_is_another_error() -> None:
    with pytest.raises(RegistryUnreachable):
        await_source(_identity("awaited/nowhere"), 0, _settings("127.0.0.1:1", 0))


def test_a_source_that_comes_later_is_waited_for(registry: str) -> None:
    identity, settings = _identity("awaited/late"), _settings(registry, 60)
    done = threading.Event()

    def wait() -> None:
        await_source(identity, 1, settings)
        done.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    with mx.publish({"a": torch.ones(4)}, identity, 1, settings=settings):
        assert done.wait(30)
        waiting.join()


def test_sources_of_other_sizes_are_named_with_the_remedy(registry: str) -> None:
    settings = _settings(registry, 0)
    with mx.publish({"a": torch.ones(4)}, _identity("awaited/sizes", 4), settings=settings) as publication:
        assert publication.wait_ready(20)
        with pytest.raises(
            NoSourceFound,
            match=r"with tensor parallel size 4, and this replica with tensor parallel size 2: .* size 4, or",
        ):
            await_source(_identity("awaited/sizes", 2), 0, settings)
        with pytest.raises(NoSourceFound, match="no ready source"):
            await_source(mx.SourceIdentity(model_name="awaited/sizes", tensor_parallel_size=2), 0, settings)


def test_stages_and_ranks_of_experts_are_named_where_they_differ(registry: str) -> None:
    settings = _settings(registry, 0)
    with ExitStack() as stack:
        for tensor, pipeline in ((2, 4), (8, 2)):
            other = _identity("awaited/stages", tensor, pipeline_parallel_size=pipeline, expert_parallel_size=2)
            publication = stack.enter_context(mx.publish({"a": torch.ones(4)}, other, settings=settings))
            assert publication.wait_ready(20)
        wanted = _identity("awaited/stages", pipeline_parallel_size=2, expert_parallel_size=2)
        with pytest.raises(NoSourceFound) as caught:
            await_source(wanted, 0, settings)
    text = str(caught.value)
    assert "tensor parallel size 2 and pipeline parallel size 4, or tensor parallel size 8 and pipeline" in text
    assert "this replica with tensor parallel size 2 and pipeline parallel size 2:" in text
    assert "Start this replica with pipeline parallel size 4, or" in text
    assert "expert" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_parameters": {"trtllm_weight_layout": "checkpoint", "trtllm_world_size": "4"}},
        {"revision": "r2"},
        {"quantization": "fp8"},
    ],
)
def test_sources_that_no_size_would_make_fit_are_not_named(registry: str, fields: dict[str, Any]) -> None:
    name, settings = f"awaited/kinds/{next(iter(fields))}", _settings(registry, 0)
    with mx.publish({"a": torch.ones(4)}, _identity(name, 4, **fields), settings=settings) as publication:
        assert publication.wait_ready(20)
        with pytest.raises(NoSourceFound, match="no ready source"):
            await_source(_identity(name), 0, settings)
