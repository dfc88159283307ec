"""`mx sources` shows who holds what, to people and to scripts."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from modelexpress.client import Client
from modelexpress.wire.records import SourceStatus
from tests.support.publications import LLAMA, QWEN, record
from tests.support.registries import RegistryProcess


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with RegistryProcess() as process, Client(process.address) as client:
        client.publish(LLAMA, record("w1", worker_rank=1, worker_grpc_endpoint="10.0.0.1:6555", accelerator="h200"))
        client.publish(LLAMA, record("w0", worker_rank=0))
        client.publish(QWEN, record("w2", worker_grpc_endpoint="[red]\x1b[2J", status=SourceStatus.INITIALIZING))
        yield process.address


def mx_sources(address: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "modelexpress.cli", "sources", "--registry", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_ready_sources_in_the_order_of_their_ranks(address: str) -> None:
    found = json.loads(mx_sources(address, "--json"))["sources"]
    assert [(source["rank"], source["status"]) for source in found] == [(0, "READY"), (1, "READY")]
    assert (found[1]["endpoint"], found[1]["accelerator"]) == ("10.0.0.1:6555", "h200")
    assert (found[1]["model"], found[1]["dtype"]) == ("Meta/Llama-3", "bfloat16")
    assert 0 <= found[1]["age"] < 60


def test_every_status_and_one_model(address: str) -> None:
    assert len(json.loads(mx_sources(address, "--json", "--all"))["sources"]) == 3
    assert len(json.loads(mx_sources(address, "--json", "--all", "--model", "QWEN/qwen3"))["sources"]) == 1
    assert json.loads(mx_sources(address, "--json", "--model", "qwen/qwen3"))["sources"] == []


def test_people_see_a_table_that_nobody_can_steer(address: str) -> None:
    table = mx_sources(address, "--all")
    assert len(table.splitlines()) == 4
    assert "initializing" in table
    assert "\x1b" not in table
    assert "[red]\N{REPLACEMENT CHARACTER}[2J" in table


def test_no_sources_are_said_so(address: str) -> None:
    assert "no ready sources" in mx_sources(address, "--model", "nothing")
