"""Unmodified vLLM loads from a peer, and without one as it always did."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from modelexpress.cli.demo_model import build_demo_model
from modelexpress.client import Client
from tests.support.engines import free_port
from tests.support.moe_checkpoint import write_experts
from tests.support.quantised_checkpoint import quantise
from tests.support.registries import RegistryProcess
from tests.support.tied_checkpoint import tie
from tests.support.vllm_replica import VllmReplica
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

REVISION = {"MX_MODEL_REVISION": "1"}
FROM_PEER = "the weights came from a peer"
ALONE = {"distributed_executor_backend": "uni"}


def await_sources(registry: str, count: int) -> None:
    """Wait until so many materials are offered; those of earlier tests have ended or are stale."""

    def listed() -> bool:
        with Client(registry) as client:
            return len(client.list_sources()) >= count

    wait_until(listed)


def ruin(checkpoint: Path) -> None:
    """Make every weight on disk zero: who serves the right ones has them from elsewhere."""
    for path in checkpoint.glob("*.safetensors"):
        data = path.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:head] + bytes(len(data) - head))


def test_replicas_come_up_from_each_other_and_without_a_registry_as_always(
    vllm_python: Path, checkpoint: Path, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"

    def replica(name: str, load_format: str) -> VllmReplica:
        options: Mapping[str, object] = {"load_format": load_format, **ALONE}
        log, first = tmp_path / f"{name}.log", name == "first"
        return VllmReplica(vllm_python, checkpoint, log, address, options=options, by_hand=first, variables=REVISION)

    with replica("first", "modelexpress") as first:
        assert f"loading natively: no registry is available at {address}" in first.messages
        assert first.fills_by_hand
        assert len(first.tokens) == 12
        with RegistryProcess(listen=address):
            await_sources(address, 1)
            ruin(checkpoint)
            with replica("second", "mx") as second:
                assert FROM_PEER in second.messages
                assert second.tokens == first.tokens
                await_sources(address, 2)
                first.kill()
                with replica("third", "modelexpress") as third:
                    assert FROM_PEER in third.messages
                    assert third.tokens == first.tokens


def test_processed_weights_of_experts_are_shared(
    vllm_python: Path, registry: str, checkpoint: Path, tmp_path: Path
) -> None:
    experts = write_experts(checkpoint, tmp_path / "experts")
    first, second = pair(vllm_python, registry, experts, tmp_path, ALONE, 1, layout="processed")
    assert FROM_PEER not in first
    assert second.count(FROM_PEER) == 1


def test_quantised_weights_are_shared_as_they_were_before_the_post_load_step(
    vllm_python: Path, registry: str, checkpoint: Path, tmp_path: Path
) -> None:
    first, second = pair(vllm_python, registry, quantise(checkpoint), tmp_path, ALONE, 1)
    assert FROM_PEER not in first
    assert second.count(FROM_PEER) == 1


def test_each_rank_gets_what_the_same_rank_has_with_tied_weights(
    vllm_python: Path, registry: str, checkpoint: Path, tmp_path: Path
) -> None:
    first, second = pair(
        vllm_python,
        registry,
        tie(checkpoint),
        tmp_path,
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
        2,
    )
    assert {f"rank {rank} is source" in first for rank in (0, 1)} == {True}
    assert second.count(FROM_PEER) == 2


def test_a_draft_model_is_a_model_of_its_own(
    vllm_python: Path, registry: str, checkpoint: Path, tmp_path: Path
) -> None:
    draft = build_demo_model(tmp_path / "draft", scale="tiny", seed=3)
    speculative = {"model": str(draft), "method": "draft_model", "num_speculative_tokens": 2}
    first, second = pair(
        vllm_python, registry, checkpoint, tmp_path, {"speculative_config": speculative, **ALONE}, 2, also=draft
    )
    assert FROM_PEER not in first
    assert second.count(FROM_PEER) == 2


def pair(
    python: Path,
    registry: str,
    checkpoint: Path,
    folder: Path,
    options: Mapping[str, object],
    materials: int,
    also: Path | None = None,
    layout: str = "",
) -> tuple[str, str]:
    """Start a replica, and another one once so many materials are offered; return what both said."""

    def replica(name: str) -> VllmReplica:
        log = folder / f"{name}.log"
        given = {"load_format": "mx", **options}
        return VllmReplica(python, checkpoint, log, registry, options=given, layout=layout, variables=REVISION)

    with replica("first") as first:
        await_sources(registry, materials)
        for each in (checkpoint, also or checkpoint):
            ruin(each)
        with replica("second") as second:
            assert second.tokens == first.tokens
            return first.messages, second.messages
