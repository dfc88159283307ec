"""Caches of engines' workers: brought whatever becomes of the weights, kept apart by host, and their use told."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.offer import offer
from modelexpress.artifacts.snapshot import take_snapshot
from modelexpress.engines import caches, process_worker
from modelexpress.engines.caches import WorkerCaches, bring_caches
from modelexpress.engines.identity import processor_architecture
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from tests.support.caches import cache_files, read_cache, write_cache
from tests.support.engine_server import EngineServer
from tests.support.materials import new_identity
from tests.support.waiting import wait_until

TRITON = Triton()
Rank = Callable[..., None]


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def cache(home: Path) -> Path:
    return home / ".triton" / "cache"


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[dict[object, Worker]]:
    """The workers of engines' processes, which end with the test instead of with the process."""
    caplog.set_level(logging.INFO)
    made: dict[object, Worker] = {}
    monkeypatch.setattr(process_worker, "_workers", made)
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
def rank(registry: str, identity: SourceIdentity, home: Path, monkeypatch: pytest.MonkeyPatch) -> Rank:
    """Bring as one rank of a host does, as if in a process of its own."""

    def bring(first: bool, node_rank: int = 0, gpu: str = "", **others: object) -> None:
        monkeypatch.setattr(caches, "_begun", set[int]())
        monkeypatch.setattr(caches, "KINDS", [TRITON])
        chosen = {"registry": registry, "worker_grpc_port": 0, "artifact_transfer": True} | others
        weights = replace(identity, gpu_arch=gpu)
        described = WorkerCaches(weights, "configuration", {"HOME": str(home)}, node_rank, first, device=0)
        bring_caches(lambda: described, Settings.model_validate(chosen))

    return bring


@pytest.fixture
def sources(registry: str, identity: SourceIdentity, tmp_path: Path) -> Iterator[None]:
    """A cache of each of two hosts of one replica, with processors as this one's."""
    here = replace(identity, gpu_arch=processor_architecture())
    with ExitStack() as stack:
        for node_rank in (0, 1):
            root = write_cache(tmp_path / f"source-{node_rank}", cache_files(4, 1024, seed=node_rank))
            worker = stack.enter_context(Worker(registry, settings=Settings(worker_grpc_port=0)))
            snapshot = take_snapshot(TRITON, root, 1 << 20)
            publication = offer(snapshot, TRITON.identity(here), worker=worker, node_rank=node_rank)
            assert publication.wait_ready(20)
        yield


@pytest.mark.usefixtures("sources")
def test_what_another_rank_has_installed_is_counted_by_the_first_one(
    rank: Rank, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineServer(503) as engine:
        rank(first=False, artifact_ready_url=engine.url)
        # Before the first rank is there another one may have begun to compile.
        (cache / "0/kernel-00000/code.bin").read_bytes()
        rank(first=True, artifact_ready_url=engine.url)
        assert "installed by another process" in caplog.text
        (cache / "1/kernel-00001/code.bin").read_bytes()
        engine.status = 200
        wait_until(lambda: "triton: 2 of 5 installed files were used" in caplog.text)
        wait_until(lambda: "are offered as" in caplog.text)


@pytest.mark.usefixtures("sources")
def test_what_was_brought_in_vain_is_warned_of_whoever_installed_it(
    rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineServer(200) as engine:
        rank(first=False, artifact_ready_url=engine.url)
        rank(first=True, artifact_ready_url=engine.url)
        wait_until(lambda: "triton: none of the 5 files that a peer compiled was used" in caplog.text)


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("told", [False, True], ids=["nothing tells", "never ready"])
def test_where_readiness_is_not_told_the_use_is_told_later(
    rank: Rank, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with EngineServer(503) as engine:
        rank(first=True, artifact_ready_url=engine.url if told else "", artifact_ready_timeout=0.2)
        wait_until(lambda: "triton: none of the 5 files that a peer compiled was used so far" in caplog.text)
    assert "the engine compiled again" not in caplog.text


@pytest.mark.usefixtures("sources")
def test_each_host_of_a_replica_gets_what_the_same_host_has(rank: Rank, cache: Path) -> None:
    rank(first=True, node_rank=1, artifact_ready_timeout=0.2)
    assert read_cache(cache) == cache_files(4, 1024, seed=1)


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(("gpu", "processor"), [("", "x86_64-of-another-make"), ("sm_90", "")])
def test_code_for_other_processors_is_not_brought(
    rank: Rank,
    cache: Path,
    gpu: str,
    processor: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(caches, "processor_architecture", lambda: processor)
    rank(first=True, gpu=gpu)
    assert "no peer has these caches yet" in caplog.text
    assert read_cache(cache) == {}


def test_ranks_that_come_later_warn_of_nothing_that_the_first_one_has_said(
    rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    rank(first=False)
    caplog.clear()
    rank(first=False)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert re.fullmatch(
        r"not brought: triton; .* has tried, \d+ s ago: NoSourceFound: no ready source .*", record.message
    )


def test_a_process_brings_once(rank: Rank, caplog: pytest.LogCaptureFixture) -> None:
    rank(first=False)
    assert "no peer has these caches yet" in caplog.text
    caplog.clear()
    bring_caches(lambda: pytest.fail("it is described again"), Settings(artifact_transfer=True))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("others", "said"),
    [({"artifact_transfer": False}, "MX_ARTIFACT_TRANSFER is not 1"), ({"p2p_metadata": False}, "MX_P2P_METADATA=0")],
)
def test_where_nothing_is_transferred_it_says_so_and_makes_no_worker(
    rank: Rank, workers: dict[object, Worker], others: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    rank(first=True, **others)
    assert f"caches of compiled kernels are not transferred: {said}" in caplog.text
    assert not workers


def test_what_cannot_be_described_does_not_break_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> WorkerCaches:
        raise RuntimeError("a configuration that nobody knows")

    monkeypatch.setattr(caches, "_begun", set[int]())
    bring_caches(broken, Settings(artifact_transfer=True))
    assert "a configuration that nobody knows" in caplog.text
