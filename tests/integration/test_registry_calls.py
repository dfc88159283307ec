"""The registry's four calls, through the real client to a real process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.client import Client
from modelexpress.identity import SourceIdentity, SourceType
from modelexpress.wire.records import ArtifactSummary, SourceStatus, WorkerRecord
from tests.support.publications import LLAMA, QWEN, record
from tests.support.registries import RegistryProcess


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    folder: Path = tmp_path_factory.mktemp("registry")
    with RegistryProcess(f"sqlite:{folder / 'registry.db'}") as process:
        yield process


@pytest.fixture
def client(registry: RegistryProcess) -> Iterator[Client]:
    with Client(registry.address) as client:
        yield client


def test_what_was_published_comes_back(client: Client) -> None:
    published = record(
        "full",
        worker_rank=3,
        worker_grpc_endpoint="10.0.0.1:6555",
        metadata_endpoint="10.0.0.1:5555",
        agent_name="agent",
        accelerator="h200",
        topology={"zone": "a"},
        nixl_metadata=b"\x00\xff",
    )
    before = time.time() * 1000 - 1
    assert client.publish(LLAMA, published) == LLAMA.source_id
    found = client.get(LLAMA.source_id, "full")
    assert found is not None
    got, identity = found
    assert identity == LLAMA
    assert before <= got.updated_at <= time.time() * 1000 + 1
    assert got == WorkerRecord(**{**vars(published), "updated_at": got.updated_at})


def test_artifacts_and_sessions_come_back(client: Client) -> None:
    identity = SourceIdentity(mx_source_type=SourceType.TRITON_CACHE, extra_parameters={"triton_key": "K"})
    published = record(
        "cache",
        tensors=(),
        artifact=ArtifactSummary("a" * 64, 2**40, 3, 4, 1),
        transfer_engine_session_id="session",
    )
    client.publish(identity, published)
    found = client.get(identity.source_id, "cache")
    assert found is not None
    assert found[0].artifact == published.artifact
    assert found[0].transfer_engine_session_id == "session"
    assert found[1] == identity


def test_what_was_never_published_is_not_found(client: Client) -> None:
    assert client.get("0" * 16, "nobody") is None
    assert client.update_status("0" * 16, "nobody", 0, SourceStatus.READY) is False


def test_listings_by_every_filter(client: Client) -> None:
    client.publish(QWEN, record("step-5", worker_rank=0, topology={"training_step": "5"}))
    client.publish(QWEN, record("step-7", worker_rank=1, topology={"training_step": "7", "zone": "b"}))
    client.publish(QWEN, record("starting", worker_rank=1, status=SourceStatus.INITIALIZING))

    def listed(**filters: object) -> set[str]:
        return {ref.worker_id for ref in client.list_sources(QWEN, **filters)}  # type: ignore[arg-type]

    assert listed() == {"step-5", "step-7", "starting"}
    assert listed(status=SourceStatus.READY) == {"step-5", "step-7"}
    assert listed(worker_rank=1, status=SourceStatus.READY) == {"step-7"}
    assert listed(min_training_step=6) == {"step-7"}
    assert listed(model_name="QWEN/Qwen3") == {"step-5", "step-7", "starting"}
    assert listed(model_name="other") == set()
    assert listed(min_updated_at=round(time.time() * 1000) + 60_000) == set()
    assert len(listed(limit=2)) == 2
    everything = {ref.worker_id for ref in client.list_sources()}
    assert everything >= {"step-5", "step-7", "starting"}
    (ref,) = client.list_sources(QWEN, min_training_step=7)
    assert (ref.training_step, ref.topology["zone"], ref.model_name) == (7, "b", "qwen/qwen3")


def test_step_and_layout_are_read_from_the_identity_too(client: Client) -> None:
    identity = SourceIdentity(
        model_name="rl/policy", extra_parameters={"training_step": "12", "layout_signature": "tp2"}
    )
    client.publish(identity, record("trainer"))
    (ref,) = client.list_sources(identity)
    assert (ref.training_step, ref.layout_signature) == (12, "tp2")


def test_a_heartbeat_refreshes_the_time_and_keeps_the_record(client: Client) -> None:
    client.publish(LLAMA, record("beating", accelerator="h200"))
    before = client.get(LLAMA.source_id, "beating")
    assert client.update_status(LLAMA.source_id, "beating", 0, SourceStatus.READY, 0.5)
    after = client.get(LLAMA.source_id, "beating")
    assert before is not None
    assert after is not None
    assert after[0].updated_at >= before[0].updated_at
    assert {**vars(after[0]), "updated_at": 0} == {**vars(before[0]), "updated_at": 0}
    (ref,) = [ref for ref in client.list_sources(LLAMA) if ref.worker_id == "beating"]
    assert ref.source_load == 0.5


def test_a_withdrawn_worker_comes_back_only_by_publishing(client: Client) -> None:
    client.publish(LLAMA, record("leaving"))
    assert client.update_status(LLAMA.source_id, "leaving", 0, SourceStatus.STALE)
    assert client.update_status(LLAMA.source_id, "leaving", 0, SourceStatus.READY) is False
    found = client.get(LLAMA.source_id, "leaving")
    assert found is not None
    assert found[0].status is SourceStatus.STALE
    client.publish(LLAMA, record("leaving"))
    assert client.update_status(LLAMA.source_id, "leaving", 0, SourceStatus.READY)


def test_a_large_record_comes_back(client: Client) -> None:
    tensors = tuple(
        type(record().tensors[0])(f"model.layers.{n}.mlp.experts.down_proj.weight", n << 24, 1 << 24, 0, "fp8")
        for n in range(20_000)
    )
    client.publish(LLAMA, record("large", tensors=tensors, nixl_metadata=bytes(5 << 20)))
    found = client.get(LLAMA.source_id, "large")
    assert found is not None
    assert found[0].tensors == tensors
