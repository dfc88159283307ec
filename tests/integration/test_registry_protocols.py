"""What a registry offers besides its calls: health, reflection, metrics, and clear refusals to start."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from modelexpress.client import Client
from tests.support.publications import LLAMA, record
from tests.support.registries import RegistryProcess


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryProcess]:
    arguments = ("--metrics", "127.0.0.1:0", "--reaper-interval", "0.1")
    with RegistryProcess("memory", "127.0.0.1:0", *arguments) as process:
        yield process


@pytest.fixture
def channel(registry: RegistryProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(registry.address) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", "model_express.p2p.P2pService"])
def test_it_says_that_it_is_healthy(channel: grpc.Channel, service: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_it_describes_its_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "model_express.p2p.P2pService" in database.get_services()
    described = database.FindFileContainingSymbol("model_express.p2p.P2pService")
    assert "UpdateStatus" in str(described)


def test_it_counts_its_calls(registry: RegistryProcess) -> None:
    with Client(registry.address) as client:
        client.publish(LLAMA, record())
    with urllib.request.urlopen(registry.metrics, timeout=5) as answer:
        text = answer.read().decode()
    assert 'mx_registry_calls_total{code="OK",method="PublishMetadata"}' in text
    assert "mx_registry_call_seconds_bucket" in text
    assert "mx_registry_workers" in text


def refusal(*arguments: str) -> str:
    """Return what `mx serve` says when it refuses to start."""
    command = [sys.executable, "-m", "modelexpress.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_it_refuses_to_start_open_to_strangers() -> None:
    assert "--insecure" in refusal("--listen", "0.0.0.0:0", "--store", "memory")


def test_it_refuses_a_port_that_is_taken(registry: RegistryProcess) -> None:
    assert "is another server running there?" in refusal("--listen", registry.address, "--store", "memory")


def test_it_refuses_what_is_no_address() -> None:
    assert "HOST:PORT" in refusal("--listen", "nonsense", "--store", "memory")


def test_it_refuses_what_is_no_store(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database" * 1000)
    assert "sqlite:PATH" in refusal("--listen", "127.0.0.1:0", "--store", "nonsense")
    assert "not a database" in refusal("--listen", "127.0.0.1:0", "--store", f"sqlite:{garbage}")
    assert garbage.read_bytes() == b"not a database" * 1000
    answer = refusal("--listen", "127.0.0.1:0", "--store", "redis://user:secret@127.0.0.1:1")
    assert "127.0.0.1:1" in answer
    assert "secret" not in answer
