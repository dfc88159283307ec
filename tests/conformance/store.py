"""What every store of the registry must do. A store's test file subclasses this and provides `store`."""

import asyncio
from typing import Any

import pytest

from modelexpress.identity import SourceIdentity
from modelexpress.registry.store import Store, Update, WorkerState
from modelexpress.wire.records import Publication, SourceQuery, SourceRef, SourceStatus, WorkerKey

LLAMA = SourceIdentity(model_name="Meta/Llama").source_id
QWEN = SourceIdentity(model_name="qwen").source_id
NOW = 1_800_000_000_000  # milliseconds since the epoch


def publication(
    worker_id: str = "w0",
    source_id: str = LLAMA,
    status: SourceStatus = SourceStatus.READY,
    worker: bytes = b"worker \x00\xff",
    **fields: Any,
) -> Publication:
    """Return a publication, with other fields of its row as given."""
    ref = SourceRef(source_id=source_id, worker_id=worker_id, **{"model_name": "Meta/Llama"} | fields)
    return Publication(ref=ref, status=status, identity=b"identity \x00\xff", worker=worker)


async def ids(store: Store, stale_before: int = 0, **query: Any) -> list[str]:
    """Return the worker ids that a query finds, in its order."""
    return [ref.worker_id for ref in await store.list_refs(SourceQuery(**query), stale_before)]


class StoreConformance:
    """Subclasses define a fixture `store` that yields an empty, open store."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a store's test file provides this")

    async def test_a_record_comes_back_as_it_was_published(self, store: Store) -> None:
        published = publication(
            worker_rank=2**32 - 1,
            accelerator="h200",
            training_step=2**63 - 1,
            layout_signature="é中\x00",
            topology={"zone": "a", "é": "中"},
            worker=bytes(range(256)) * 4096,
        )
        await store.publish(published, NOW)
        found = await store.get(published.key)
        assert found is not None
        got, live = found
        assert (got.identity, got.worker) == (published.identity, published.worker)
        assert (live.state, live.updated_at, live.source_load) == (WorkerState.READY, NOW, None)
        (ref,) = await store.list_refs(SourceQuery(), 0)
        assert ref == SourceRef(**{**vars(published.ref), "updated_at": NOW})

    async def test_worker_ids_may_hold_anything(self, store: Store) -> None:
        names = ["a:b", "a", "b:a:", " ", "é中", "{x}", "*", "'; DROP TABLE publication", "\n\x00"]
        for name in names:
            await store.publish(publication(name), NOW)
        assert sorted(await ids(store)) == sorted(names)
        for name in names:
            assert await store.get(WorkerKey(LLAMA, name)) is not None

    async def test_an_unknown_record_is_none(self, store: Store) -> None:
        await store.publish(publication(), NOW)
        assert await store.get(WorkerKey(QWEN, "w0")) is None
        assert await store.get(WorkerKey(LLAMA, "w1")) is None
        assert await store.update(WorkerKey(LLAMA, "w1"), WorkerState.READY, NOW) is Update.NOT_FOUND

    async def test_publishing_again_replaces_everything(self, store: Store) -> None:
        await store.publish(publication(topology={"zone": "a"}, training_step=1), NOW)
        await store.update(WorkerKey(LLAMA, "w0"), WorkerState.READY, NOW, 0.5)
        await store.publish(publication(worker=b"new", status=SourceStatus.INITIALIZING), NOW + 1)
        found = await store.get(WorkerKey(LLAMA, "w0"))
        assert found is not None
        assert found[0].worker == b"new"
        assert (found[1].state, found[1].source_load) == (WorkerState.INITIALIZING, None)
        (ref,) = await store.list_refs(SourceQuery(), 0)
        assert (ref.topology, ref.training_step, ref.updated_at) == ({}, None, NOW + 1)
        usage = await store.usage()
        assert usage.records.get(WorkerState.INITIALIZING) == 1
        assert sum(usage.records.values()) == 1

    async def test_a_heartbeat_changes_time_and_load_only(self, store: Store) -> None:
        await store.publish(publication(), NOW)
        before = await store.get(WorkerKey(LLAMA, "w0"))
        assert await store.update(WorkerKey(LLAMA, "w0"), WorkerState.READY, NOW + 5, 0.25) is Update.DONE
        assert await store.update(WorkerKey(LLAMA, "w0"), WorkerState.READY, NOW + 9) is Update.DONE
        after = await store.get(WorkerKey(LLAMA, "w0"))
        assert before is not None
        assert after is not None
        assert (after[0].worker, after[0].identity) == (before[0].worker, before[0].identity)
        assert (after[1].updated_at, after[1].source_load) == (NOW + 9, 0.25)

    async def test_withdrawn_wins_over_everything_but_a_publication(self, store: Store) -> None:
        key = WorkerKey(LLAMA, "w0")
        await store.publish(publication(), NOW)
        assert await store.update(key, WorkerState.WITHDRAWN, NOW + 1) is Update.DONE
        for late in (WorkerState.READY, WorkerState.INITIALIZING, WorkerState.UNKNOWN):
            assert await store.update(key, late, NOW + 2) is Update.WITHDRAWN
        assert await store.update(key, WorkerState.WITHDRAWN, NOW + 3) is Update.DONE
        assert await ids(store, status=SourceStatus.READY) == []
        await store.publish(publication(), NOW + 4)
        assert await ids(store, status=SourceStatus.READY) == ["w0"]

    async def test_withdrawing_wins_however_the_race_ends(self, store: Store) -> None:
        key = WorkerKey(LLAMA, "w0")
        for turn in range(20):
            await store.publish(publication(), NOW)
            states = [WorkerState.READY] * 5 + [WorkerState.WITHDRAWN] + [WorkerState.READY] * 5
            shift = turn % len(states)
            await asyncio.gather(*(store.update(key, s, NOW) for s in states[shift:] + states[:shift]))
            found = await store.get(key)
            assert found is not None
            assert found[1].state is WorkerState.WITHDRAWN

    async def test_every_filter(self, store: Store) -> None:
        await store.publish(publication("w0", worker_rank=0, training_step=5), NOW + 3)
        await store.publish(publication("w1", worker_rank=1, training_step=7), NOW + 2)
        await store.publish(publication("w2", worker_rank=1, status=SourceStatus.INITIALIZING), NOW + 1)
        await store.publish(publication("w3", QWEN, model_name="QWEN", training_step=0), NOW)
        assert await ids(store) == ["w0", "w1", "w2", "w3"]
        assert await ids(store, source_id=LLAMA) == ["w0", "w1", "w2"]
        assert await ids(store, source_id="0" * 16) == []
        assert await ids(store, status=SourceStatus.READY) == ["w0", "w1", "w3"]
        assert await ids(store, status=SourceStatus.INITIALIZING) == ["w2"]
        assert await ids(store, status=SourceStatus.UNKNOWN) == []
        assert await ids(store, model_name="meta/LLAMA") == ["w0", "w1", "w2"]
        assert await ids(store, model_name="") == []
        assert await ids(store, worker_rank=1) == ["w1", "w2"]
        assert await ids(store, worker_rank=0) == ["w0", "w3"]
        assert await ids(store, min_training_step=0) == ["w0", "w1", "w3"]
        assert await ids(store, min_training_step=6) == ["w1"]
        assert await ids(store, min_training_step=2**64 - 1) == []
        assert await ids(store, min_updated_at=NOW + 2) == ["w0", "w1"]
        assert await ids(store, min_updated_at=-1, limit=3) == ["w0", "w1", "w2"]
        assert await ids(store, limit=0) == []
        assert await ids(store, limit=2**32 - 1) == ["w0", "w1", "w2", "w3"]
        assert await ids(store, source_id=LLAMA, worker_rank=1, status=SourceStatus.READY) == ["w1"]

    async def test_case_folds_beyond_ascii(self, store: Store) -> None:
        await store.publish(publication(model_name="MÉTA/中"), NOW)
        assert await ids(store, model_name="méta/中") == ["w0"]

    async def test_equal_times_are_ordered_by_worker_id(self, store: Store) -> None:
        for name in ("b", "é", "a", "中"):
            await store.publish(publication(name), NOW)
        assert await ids(store) == ["a", "b", "é", "中"]

    async def test_silence_reads_as_stale(self, store: Store) -> None:
        await store.publish(publication("old"), NOW)
        await store.publish(publication("new"), NOW + 10)
        assert await ids(store, NOW + 1, status=SourceStatus.READY) == ["new"]
        assert await ids(store, NOW + 1, status=SourceStatus.STALE) == ["old"]
        assert await ids(store, NOW + 1) == ["new", "old"]
        assert await ids(store, NOW, status=SourceStatus.READY) == ["new", "old"]

    async def test_the_lost_come_back_with_a_heartbeat(self, store: Store) -> None:
        await store.publish(publication("old"), NOW)
        await store.publish(publication("gone"), NOW)
        await store.update(WorkerKey(LLAMA, "gone"), WorkerState.WITHDRAWN, NOW)
        await store.publish(publication("new"), NOW + 10)
        assert await store.mark_lost(NOW + 1) == 1
        assert await store.mark_lost(NOW + 1) == 0
        assert await ids(store, status=SourceStatus.STALE) == ["gone", "old"]
        found = await store.get(WorkerKey(LLAMA, "old"))
        assert found is not None
        assert (found[1].state, found[1].updated_at) == (WorkerState.LOST, NOW)
        assert await store.update(WorkerKey(LLAMA, "old"), WorkerState.READY, NOW + 20) is Update.DONE
        assert await ids(store, status=SourceStatus.READY) == ["old", "new"]

    async def test_only_the_long_dead_are_deleted(self, store: Store) -> None:
        for name in ("lost", "withdrawn", "alive"):
            await store.publish(publication(name), NOW)
        await store.update(WorkerKey(LLAMA, "withdrawn"), WorkerState.WITHDRAWN, NOW + 5)
        await store.mark_lost(NOW + 1)
        await store.update(WorkerKey(LLAMA, "alive"), WorkerState.READY, NOW)
        assert await store.delete_dead(NOW) == 0
        assert await store.delete_dead(NOW + 1) == 1
        assert sorted(await ids(store)) == ["alive", "withdrawn"]
        assert await store.delete_dead(NOW + 6) == 1
        assert await ids(store) == ["alive"]
        assert await ids(store, source_id=LLAMA) == ["alive"]
        assert await store.get(WorkerKey(LLAMA, "lost")) is None
        assert (await store.usage()).records.get(WorkerState.LOST, 0) == 0

    async def test_usage_counts_records_and_bytes(self, store: Store) -> None:
        assert sum((await store.usage()).records.values()) == 0
        assert (await store.usage()).nbytes == 0
        for number in range(3):
            await store.publish(publication(f"w{number}", worker=b"x" * 100), NOW)
        await store.update(WorkerKey(LLAMA, "w0"), WorkerState.WITHDRAWN, NOW)
        usage = await store.usage()
        assert (usage.records[WorkerState.READY], usage.records[WorkerState.WITHDRAWN]) == (2, 1)
        assert usage.nbytes == 3 * (100 + len(publication().identity))
        await store.delete_dead(NOW + 1)
        assert (await store.usage()).nbytes == 2 * (100 + len(publication().identity))

    async def test_many_at_once(self, store: Store) -> None:
        await asyncio.gather(*(store.publish(publication(f"w{n:04}"), NOW) for n in range(1200)))
        keys = [WorkerKey(LLAMA, f"w{n:04}") for n in range(1200)]
        outcomes = await asyncio.gather(*(store.update(key, WorkerState.READY, NOW + 1) for key in keys))
        assert set(outcomes) == {Update.DONE}
        assert len(await ids(store, source_id=LLAMA)) == 1200
        assert await store.mark_lost(NOW + 2) == 1200
        assert await store.delete_dead(NOW + 2) == 1200
        assert await ids(store) == []

    async def test_closing_twice_is_allowed(self, store: Store) -> None:
        await store.close()
        await store.close()
