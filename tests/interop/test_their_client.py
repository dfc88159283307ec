"""The client of PyPI's `modelexpress` and ours, on one registry of ours."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelexpress.client import Client
from modelexpress.identity import SourceIdentity
from modelexpress.wire.p2p import identity_to_message, worker_to_message
from modelexpress.wire.records import SourceStatus, TensorDescriptor
from tests.support.identities import identities
from tests.support.publications import LLAMA, record
from tests.support.registries import RegistryProcess

pytestmark = pytest.mark.interop
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with RegistryProcess() as process:
        yield process.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def as_json(identity: SourceIdentity) -> dict[str, Any]:
    return MessageToDict(identity_to_message(identity), preserving_proto_field_name=True)


def test_the_other_side_is_the_package_of_pypi(ask: Ask) -> None:
    assert ask("version") == "0.7.0"


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(some=st.lists(identities(), min_size=25, max_size=25))
def test_both_compute_the_same_source_ids(ask: Ask, some: list[SourceIdentity]) -> None:
    assert ask("source_ids", identities=[as_json(i) for i in some]) == [i.source_id for i in some]


def test_their_whole_life_of_a_source(ask: Ask, address: str, client: Client) -> None:
    identity = as_json(LLAMA)
    worker = {
        "worker_rank": 1,
        "nixl_metadata": "AP8=",
        "metadata_endpoint": "10.0.0.1:5555",
        "agent_name": "agent",
        "worker_grpc_endpoint": "10.0.0.1:6555",
        "accelerator": "cuda",
        "topology": {"zone": "a"},
        "tensor_source": {"tensors": [{"name": "w", "addr": "4096", "size": "64", "dtype": "bfloat16"}]},
    }
    source_id = ask("publish", address=address, identity=identity, worker=worker, worker_id="theirs")
    assert source_id == LLAMA.source_id
    ready = {"address": address, "identity": identity, "status": SourceStatus.READY}
    assert ask("list_sources", **ready) == {}
    key = {"address": address, "source_id": source_id, "worker_id": "theirs"}
    assert ask("update", **key, rank=1, status=SourceStatus.READY, load=0.25) is True
    (row,) = ask("list_sources", **ready)["instances"]
    assert (row["worker_id"], row["worker_rank"], row["source_load"]) == ("theirs", 1, 0.25)
    assert (row["accelerator"], row["topology"], row["model_name"]) == ("cuda", {"zone": "a"}, LLAMA.model_name)
    found = ask("get", **key)
    assert found["identity"] == identity
    assert {name: found["worker"][name] for name in worker} == worker
    assert found["worker"]["status"] == SourceStatus.READY

    ours = client.get(source_id, "theirs")
    assert ours is not None
    assert ours[1] == LLAMA
    assert ours[0].tensors == (TensorDescriptor("w", 4096, 64, 0, "bfloat16"),)
    assert (ours[0].nixl_metadata, ours[0].worker_grpc_endpoint) == (b"\x00\xff", "10.0.0.1:6555")

    assert ask("update", **key, rank=1, status=SourceStatus.STALE) is True
    assert ask("update", **key, rank=1, status=SourceStatus.READY) is False
    assert client.list_sources(LLAMA, status=SourceStatus.READY) == []


def test_they_read_what_we_publish(ask: Ask, address: str, client: Client) -> None:
    identity = SourceIdentity(model_name="é/中", extra_parameters={"Role": "Trainer"}, gpu_arch="sm_90")
    published = record("ours", worker_rank=3, worker_grpc_endpoint="10.0.0.2:6555", accelerator="h200")
    source_id = client.publish(identity, published)
    (row,) = ask("list_sources", address=address, identity=as_json(identity))["instances"]
    assert (row["mx_source_id"], row["worker_id"], row["worker_rank"]) == (source_id, "ours", 3)
    found = ask("get", address=address, source_id=source_id, worker_id="ours")
    expected = MessageToDict(worker_to_message(published), preserving_proto_field_name=True)
    assert found["worker"]["tensor_source"] == expected["tensor_source"]
    assert found["worker"]["worker_grpc_endpoint"] == "10.0.0.2:6555"
    assert found["identity"]["extra_parameters"] == {"Role": "Trainer"}


def test_they_learn_that_nobody_is_there(ask: Ask, address: str) -> None:
    assert ask("get", address=address, source_id="0" * 16, worker_id="nobody").get("found", False) is False
    arguments = {"source_id": "0" * 16, "worker_id": "nobody", "rank": 0, "status": SourceStatus.READY}
    assert ask("update", address=address, **arguments) is False
