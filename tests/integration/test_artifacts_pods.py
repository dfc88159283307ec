"""Many ranks of one pod, each a process: one of them brings the cache, or fails to, for all."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelexpress.client import Client
from modelexpress.identity import SourceIdentity
from modelexpress.peer import ENDPOINT_TOPOLOGY
from modelexpress.wire.records import SourceStatus, WorkerRecord
from tests.support.artifact_source import ArtifactSource
from tests.support.caches import KINDS, cache_files, read_cache
from tests.support.materials import new_identity
from tests.support.pod_rank import PodRank

RANKS = 4
MIB = 1 << 20


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def pod(registry: str, identity: SourceIdentity, tmp_path: Path) -> Iterator[list[PodRank]]:
    with ExitStack() as stack:
        yield [stack.enter_context(PodRank(registry, identity, tmp_path / "cache")) for _ in range(RANKS)]


def run(pod: list[PodRank]) -> list[dict[str, str]]:
    for rank in pod:
        rank.tell("go")
    return [rank.answer() for rank in pod]


def test_one_rank_installs_and_the_others_wait_for_it(
    registry: str, identity: SourceIdentity, pod: list[PodRank], tmp_path: Path
) -> None:
    with ArtifactSource(registry, identity, 32, MIB, transport="tcp", uplink=128 * MIB) as source:
        said = run(pod)
        assert not source.process.poll()
    assert sorted(each["outcome"] for each in said) == ["by another process"] * (RANKS - 1) + ["installed"]
    assert read_cache(tmp_path / "cache") == cache_files(32, MIB)


def test_a_source_that_fails_is_tried_by_one_rank_alone(
    registry: str, identity: SourceIdentity, pod: list[PodRank], tmp_path: Path
) -> None:
    kind = KINDS["plain"]
    with socket.create_server(("127.0.0.1", 0)) as nobody, Client(registry) as client:
        # It takes connections and never says a word, as a worker does whose host was frozen.
        endpoint = f"127.0.0.1:{nobody.getsockname()[1]}"
        record = WorkerRecord(
            worker_id="frozen",
            status=SourceStatus.READY,
            worker_grpc_endpoint=endpoint,
            topology={ENDPOINT_TOPOLOGY: endpoint},
        )
        client.publish(kind.identity(identity), record)
        said = run(pod)
    assert [each["outcome"] for each in said] == [""] * RANKS
    tried = [each["reason"] for each in said if "another process of this host" not in each["reason"]]
    assert len(tried) == 1
    assert endpoint in tried[0]
    assert read_cache(tmp_path / "cache") == {}


def test_a_rank_that_is_killed_in_the_middle_leaves_no_half_cache_and_holds_nobody_up(
    registry: str, identity: SourceIdentity, pod: list[PodRank], tmp_path: Path
) -> None:
    first, *others = pod
    with ArtifactSource(registry, identity, 64, MIB, transport="tcp", uplink=16 * MIB) as source:
        first.tell("go")
        source.wait_reader()
        first.kill()
        assert read_cache(tmp_path / "cache") == {}
    with ArtifactSource(registry, identity, 64, MIB):
        said = run(others)
    assert sorted(each["outcome"] for each in said) == ["by another process"] * (RANKS - 2) + ["installed"]
    assert read_cache(tmp_path / "cache") == cache_files(64, MIB)
