"""Targets of a TensorRT-LLM checkpoint that feed one another while they receive: real processes, some of which die."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import modelexpress as mx
from modelexpress.engines.trtllm import MxTrtllmTargetLoader, relays
from modelexpress.errors import ConfigurationError
from tests.support.materials import new_identity
from tests.support.readers import only_reader
from tests.support.trtllm_checkpoints import big_rank, config_of, contents, plain_rank, write_checkpoint
from tests.support.trtllm_source import TrtllmSource
from tests.support.trtllm_target import TrtllmTarget
from tests.support.waiting import wait_until

MEGABYTES = 32
TOTAL = MEGABYTES << 20
SMALL_CHUNKS = {"MX_CHUNK_BYTES": str(1 << 20), "MX_READER_LIMIT": "1"}
SLOW = SMALL_CHUNKS | {"MX_UPLINK_LIMIT": str(8 << 20)}
"""Each rank takes four seconds to leave such a worker, which can be struck in the middle."""


@pytest.fixture
def name() -> str:
    return new_identity().model_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one rank, which nobody may change."""
    place = tmp_path_factory.mktemp("trtllm") / "source"
    return write_checkpoint(place, config_of(1), lambda rank: big_rank(rank, MEGABYTES))


@contextmanager
def targets(registry: str, name: str, place: Path, *environments: dict[str, str]) -> Iterator[list[TrtllmTarget]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(TrtllmTarget(registry, name, place / str(number), environment))
            for number, environment in enumerate(environments)
        ]


@contextmanager
def early_and_late(
    registry: str, name: str, folder: Path, place: Path
) -> Iterator[tuple[TrtllmSource, TrtllmTarget, TrtllmTarget]]:
    """Yield a source, a target that is faster than it passes on, and one that is started when the first has begun."""
    with (
        TrtllmSource(registry, folder, name, SLOW | {"MX_UPLINK_LIMIT": str(24 << 20)}) as source,
        targets(registry, name, place, SLOW, SMALL_CHUNKS) as (early, late),
    ):
        early.start()
        early.reach(2)
        late.start()
        yield source, early, late


def test_targets_that_start_together_take_one_checkpoint_from_the_source(
    registry: str, name: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), lambda rank: big_rank(rank, MEGABYTES))
    with (
        TrtllmSource(registry, folder, name, SLOW) as source,
        targets(registry, name, tmp_path, SMALL_CHUNKS, SMALL_CHUNKS, SMALL_CHUNKS) as chain,
    ):
        for target in chain:
            target.start()
        for endpoint in source.endpoints:
            first = only_reader(endpoint)
            second = only_reader(first.endpoint)
            third = only_reader(second.endpoint)
            found = [next(t for t in chain if t.is_worker(each.reader_id)) for each in (first, second, third)]
            assert len(set(found)) == 3
        reports = [target.report() for target in chain]
        own = [rank for each in reports for rank, source_id in each["sources"].items() if not fed_by(chain, source_id)]
    assert sorted(own) == ["0", "1"], "each rank left the source once"
    assert [each["travelled"] for each in reports] == [2 * TOTAL] * 3, "nobody had to begin anew"
    assert all(contents(target.checkpoint) == contents(folder) for target in chain)


def fed_by(chain: list[TrtllmTarget], worker_id: str) -> bool:
    return any(target.is_worker(worker_id) for target in chain)


def test_when_a_link_dies_the_one_behind_goes_on_with_what_it_has(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    with (
        TrtllmSource(registry, folder, name, SLOW) as source,
        targets(registry, name, tmp_path, SMALL_CHUNKS, SMALL_CHUNKS, SMALL_CHUNKS) as chain,
    ):
        for target in chain:
            target.start()
        first = only_reader(source.endpoints[0])
        second = only_reader(first.endpoint)
        third = only_reader(second.endpoint)
        before, middle, behind = (
            next(target for target in chain if target.is_worker(each.reader_id)) for each in (first, second, third)
        )
        behind.reach(4)
        middle.kill()
        report = behind.report()
        before.report()
    assert report["travelled"] <= 0.65 * TOTAL, "what was verified is not fetched again"
    assert before.is_worker(report["sources"]["0"]), "the one before the link has a place"
    for target in (before, behind):
        assert contents(target.checkpoint) == contents(folder)
    assert not middle.checkpoint.exists()


def test_a_target_that_is_through_early_serves_who_reads_from_it(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    with early_and_late(registry, name, folder, tmp_path) as (source, early, late):
        assert late.is_worker(only_reader(only_reader(source.endpoints[0]).endpoint).reader_id)
        early.reach(10)
        late.reach(9)
        waited = "waiting until those who read from here are through: 1" in early.report()["log"]
        report = late.report()
    assert waited
    assert early.is_worker(report["sources"]["0"])
    assert report["travelled"] == TOTAL, "it was served to the end"
    assert contents(late.checkpoint) == contents(early.checkpoint) == contents(folder)


def test_a_reader_that_gets_no_further_is_left_and_goes_on_elsewhere(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    with early_and_late(registry, name, folder, tmp_path) as (_, early, late):
        late.reach(1)
        os.kill(late.process.pid, signal.SIGSTOP)
        assert any(f"no further for {relays.PATIENCE:g} s" in line for line in early.report()["log"])
        os.kill(late.process.pid, signal.SIGCONT)
        report = late.report()
    assert report["travelled"] < TOTAL
    assert not early.is_worker(report["sources"]["0"])
    assert contents(late.checkpoint) == contents(folder)


def test_a_file_that_is_cut_short_ends_its_reader_and_nothing_else(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    with early_and_late(registry, name, folder, tmp_path) as (_, early, late):
        late.reach(1)
        wait_until(early.checkpoint.exists)
        os.truncate(early.checkpoint / "rank0.safetensors", 1 << 20)
        report = late.report()
        early.report()
    assert report["travelled"] < TOTAL
    assert not early.is_worker(report["sources"]["0"])
    assert contents(late.checkpoint) == contents(folder)


def test_memory_stays_flat_where_others_read(registry: str, name: str, tmp_path: Path) -> None:
    megabytes = 512
    big = write_checkpoint(tmp_path / "source", config_of(1), lambda rank: big_rank(rank, megabytes))
    with (
        TrtllmSource(registry, big, name, SMALL_CHUNKS | {"MX_UPLINK_LIMIT": str(256 << 20)}),
        targets(registry, name, tmp_path, SMALL_CHUNKS, SMALL_CHUNKS) as (early, late),
    ):
        early.start()
        early.reach(1)
        late.start()
        reports = [early.report(), late.report()]
    assert early.is_worker(reports[1]["sources"]["0"])
    assert max(report["peak"] for report in reports) < megabytes << 20 >> 1, "mapped files included"


def test_a_target_that_cannot_serve_loads_all_the_same(
    registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> mx.Worker:
        raise ConfigurationError("no port is free")

    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    caplog.set_level("INFO", "modelexpress.engines.trtllm")
    with TrtllmSource(registry, folder, name):
        settings = mx.Settings(worker_grpc_port=0, transport="local")
        MxTrtllmTargetLoader(name, registry, tmp_path / "local", wait=10, settings=settings).load(skip_build=True)
        assert "nothing is passed on to other targets: files go over tcp, MX_TRANSPORT is local" in caplog.messages
        monkeypatch.setattr(relays, "rank_worker", refuse)
        MxTrtllmTargetLoader(name, registry, tmp_path / "deaf", wait=10, settings=mx.Settings()).load(skip_build=True)
    assert {f"rank {rank} is not passed on to other targets: no port is free" for rank in (0, 1)} <= set(
        caplog.messages
    )
    for out in ("local", "deaf"):
        assert contents(tmp_path / out / "checkpoint") == contents(folder)
