"""Chains of targets that feed one another while they receive: real processes, some of which are killed."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import NoRoom, SourceGone
from modelexpress.peer import PeerClient
from modelexpress.transport.nixl_library import missing
from tests.support.chain_target import ChainTarget
from tests.support.commands import run
from tests.support.readers import only_reader
from tests.support.registries import RegistryProcess
from tests.support.sources import SourceProcess, tensors
from tests.support.waiting import wait_until

MEGABYTES = 64
TOTAL = MEGABYTES << 20
SLOW = 40 << 20
"""Bytes a second of a source that leaves time to watch: the whole takes 1.6 seconds."""
TRANSPORTS = [
    "local",
    "tcp",
    pytest.param("nixl", marks=pytest.mark.skipif(missing() is not None, reason=str(missing()))),
]


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


@contextmanager
def seed(registry: str, identity: mx.SourceIdentity, transport: str, uplink: int = 0) -> Iterator[SourceProcess]:
    with SourceProcess(registry, identity, MEGABYTES, transport=transport, uplink=uplink) as source:
        yield source


@contextmanager
def targets(registry: str, identity: mx.SourceIdentity, transport: str, count: int) -> Iterator[list[ChainTarget]]:
    """Start processes that load when they are told to; what is started next becomes ready beside them."""
    with ExitStack() as stack:
        yield [stack.enter_context(ChainTarget(registry, identity, MEGABYTES, transport)) for _ in range(count)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_targets_that_start_together_feed_one_another(
    registry: str, identity: mx.SourceIdentity, transport: str
) -> None:
    with targets(registry, identity, transport, 3) as chain, seed(registry, identity, transport, SLOW) as source:
        for target in chain:
            target.start()
        first = only_reader(source.endpoint)
        second = only_reader(first.endpoint)
        third = only_reader(second.endpoint)
        assert {reader.reader_id for reader in (first, second, third)} == {target.worker_id for target in chain}
        reports = [target.report() for target in chain]
    assert all(report["right"] for report in reports)
    assert sorted(report["source"] for report in reports) == sorted(
        [source.worker_id, first.reader_id, second.reader_id]
    )
    assert {report["nbytes"] for report in reports} == {TOTAL}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_when_a_link_dies_the_rest_goes_on_where_it_was(
    registry: str, identity: mx.SourceIdentity, transport: str
) -> None:
    with targets(registry, identity, transport, 3) as chain, seed(registry, identity, transport, SLOW) as source:
        for target in chain:
            target.start()
        first = only_reader(source.endpoint)
        second = only_reader(first.endpoint)
        by_id = {target.worker_id: target for target in chain}
        follower = by_id[second.reader_id]
        follower.reach(4)
        by_id[first.reader_id].kill()
        reports = [target.report() for target in chain if target.worker_id != first.reader_id]
    assert all(report["right"] for report in reports)
    behind = next(report for report in reports if report["source"] == source.worker_id)
    assert behind["kept_bytes"] >= 0.4 * TOTAL, "what was verified is not fetched again"
    assert any(first.reader_id in note for note in behind["notes"])


def test_a_link_is_replaced_without_the_registry(identity: mx.SourceIdentity) -> None:
    with (
        RegistryProcess() as registry,
        targets(registry.address, identity, "tcp", 2) as (early, late),
        seed(registry.address, identity, "tcp", SLOW) as source,
    ):
        early.start()
        early.reach(1)
        late.start()
        late.reach(2)
        registry.kill()
        early.kill()
        report = late.report()
    assert report["right"]
    assert report["source"] == source.worker_id
    assert report["kept_bytes"] >= 0.2 * TOTAL


def test_a_late_one_takes_what_is_there_and_follows(registry: str, identity: mx.SourceIdentity) -> None:
    with targets(registry, identity, "local", 2) as chain, seed(registry, identity, "local", SLOW) as source:
        early, late = chain
        early.start()
        early.reach(6)
        late.start()
        assert only_reader(only_reader(source.endpoint).endpoint).reader_id == late.worker_id
        assert early.report()["right"]
        report = late.report()
        assert report["right"]
        assert report["source"] == early.worker_id


def test_people_see_who_feeds_whom(registry: str, identity: mx.SourceIdentity) -> None:
    with targets(registry, identity, "local", 2) as chain, seed(registry, identity, "local", SLOW // 8) as source:
        for target in chain:
            target.start()
        first = only_reader(source.endpoint)
        second = only_reader(first.endpoint)
        found = json.loads(run("sources", "--registry", registry, "--json", "--model", identity.model_name).stdout)
        shown = run("sources", "--registry", registry, "--model", identity.model_name).stdout
    (row,) = found["sources"]
    (below,) = row["readers"]
    assert (below["worker_id"], below["total_bytes"]) == (first.reader_id, TOTAL)
    assert [reader["worker_id"] for reader in below["readers"]] == [second.reader_id]
    lines = shown.splitlines()
    assert [first.reader_id in lines[2], second.reader_id in lines[3]] == [True, True]
    assert "% of 0.07 GB" in lines[2]


def test_a_target_that_was_filled_is_a_source_like_any_other(registry: str, identity: mx.SourceIdentity) -> None:
    with targets(registry, identity, "local", 1) as (target,):
        with seed(registry, identity, "local"):
            target.start()
            assert target.report()["right"]
        model = {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}
        settings = mx.Settings.model_validate({"transport": "local"})

        def filled() -> bool:
            report = mx.load(model, identity, registry=registry, settings=settings)
            return report.source == target.worker_id

        wait_until(filled)
    assert all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES).items())


def test_targets_that_serve_nobody_share_the_source(registry: str, identity: mx.SourceIdentity) -> None:
    settings = mx.Settings.model_validate({"transport": "local"})
    with seed(registry, identity, "local") as source, PeerClient(source.endpoint) as client:
        model = {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}
        client.acquire(identity.source_id, source.worker_id, "another reader", "host")
        report = mx.load(model, identity, registry=registry, settings=settings)
    assert report.source == source.worker_id


def test_a_target_without_room_leaves_nothing_that_others_wait_for(
    registry: str, identity: mx.SourceIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = mx.Settings(worker_grpc_port=0)
    with mx.Worker(registry, settings=settings) as worker, PeerClient(worker.member.endpoint) as client:
        monkeypatch.setattr(torch, "empty_strided", full)
        with pytest.raises(NoRoom):
            mx.load({"w": torch.empty(8, device="meta")}, identity, registry=registry, device="cuda:0", worker=worker)
        with pytest.raises(SourceGone):
            client.acquire(identity.source_id, worker.worker_id, "reader", "host")


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_a_source_with_a_limited_uplink_is_read_no_faster(
    registry: str, identity: mx.SourceIdentity, transport: str
) -> None:
    with targets(registry, identity, transport, 1) as (target,), seed(registry, identity, transport, SLOW):
        target.start()
        report = target.report()
    copied = next(stage for stage in report["stages"] if stage["name"] == "copy and verify")
    assert copied["seconds"] >= 0.8 * TOTAL / SLOW
