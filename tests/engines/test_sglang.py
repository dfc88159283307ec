"""Unmodified SGLang loads from a peer, and without one as it always did."""

import json
from pathlib import Path

import pytest

from modelexpress.client import Client
from tests.support.engines import SglangServer, free_port
from tests.support.moe_checkpoint import write_experts
from tests.support.registries import RegistryProcess
from tests.support.tied_checkpoint import tie
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)  # the environment is made here where it is missing

FROM_PEER = "the weights came from a peer"
REMOTE = ("--load-format", "remote_instance", "--remote-instance-weight-loader-backend", "modelexpress")
NOWHERE = "127.0.0.1:9"
PROMPT = "what is a peer"


def replica(python: Path, checkpoint: Path, name: str, *, ranks: int = 1, **config: str) -> SglangServer:
    """Start a server that is told the registry's address by its own configuration alone."""
    environment = {"MX_MODEL_REVISION": "1", "MX_SERVER_ADDRESS": NOWHERE, "MX_WORKER_HOST": "127.0.0.1"}
    options = [*REMOTE, "--modelexpress-config", json.dumps(config), "--tp-size", str(ranks)]
    if ranks > 1:
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(ranks)))
    log = checkpoint.with_name(f"{name}.log")
    return SglangServer(python, checkpoint, log, *options, environment=environment)


def await_sources(registry: str, count: int) -> None:
    def listed() -> bool:
        with Client(registry) as client:
            return len(client.list_sources()) >= count

    wait_until(listed)


def without_weights(checkpoint: Path) -> dict[Path, bytes]:
    """Make every weight on disk zero, and return what was there: who serves the right ones has them from elsewhere."""
    contents = {path: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    for path, data in contents.items():
        head = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:head] + bytes(len(data) - head))
    return contents


def test_replicas_come_up_from_each_other_and_without_a_peer_as_always(
    sglang_python: Path, checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = write_experts(checkpoint, tmp_path / "experts")
    address = f"127.0.0.1:{free_port()}"
    with replica(sglang_python, checkpoint, "first", url=address) as first:
        first.wait_healthy()
        assert f"loading natively: no registry is available at {address}" in first.messages
        expected = first.generate(PROMPT)
        with RegistryProcess(listen=address):
            await_sources(address, 1)
            contents = without_weights(checkpoint)
            with replica(sglang_python, checkpoint, "second", url=address, transport="transfer_engine") as second:
                second.wait_healthy()
                assert FROM_PEER in second.messages
                assert "the transport 'transfer_engine'" in second.messages
                assert second.generate(PROMPT) == expected
                await_sources(address, 2)
                first.kill()
            for path, data in contents.items():
                path.write_bytes(data)
            with replica(sglang_python, checkpoint, "third", url=address, transport="nixl") as third:
                third.wait_healthy()
                assert FROM_PEER not in third.messages
                assert "this replica loads natively" in third.messages, "those that have ended are not asked"
                assert third.generate(PROMPT) == expected


def test_each_rank_gets_what_the_same_rank_has_with_tied_weights(
    sglang_python: Path, registry: str, checkpoint: Path
) -> None:
    tie(checkpoint)
    with replica(sglang_python, checkpoint, "first", ranks=2, url=registry) as first:
        expected = first.wait_healthy().generate(PROMPT)
        await_sources(registry, 2)
        without_weights(checkpoint)
        with replica(sglang_python, checkpoint, "second", ranks=2, url=registry) as second:
            assert second.wait_healthy().generate(PROMPT) == expected
            assert second.messages.count(FROM_PEER) == 2
