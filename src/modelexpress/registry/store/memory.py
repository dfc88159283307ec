"""Records in the memory of this process: for tests and for fleets that can publish again after a restart."""

import dataclasses
from collections import Counter

from modelexpress.registry.store.base import DEAD, Liveness, Store, Update, Usage, WorkerState
from modelexpress.registry.store.matching import matches, ordered
from modelexpress.wire.records import Publication, SourceQuery, SourceRef, WorkerKey


class MemoryStore(Store):
    """A dictionary, indexed by source id because that is what targets ask for."""

    def __init__(self) -> None:
        self._records: dict[WorkerKey, tuple[Publication, Liveness]] = {}
        self._of_source: dict[str, set[WorkerKey]] = {}

    async def publish(self, publication: Publication, now: int) -> None:
        state = WorkerState.told(publication.status)
        self._records[publication.key] = (publication, Liveness(state, now))
        self._of_source.setdefault(publication.key.source_id, set()).add(publication.key)

    async def update(self, key: WorkerKey, state: WorkerState, now: int, source_load: float | None = None) -> Update:
        if key not in self._records:
            return Update.NOT_FOUND
        publication, live = self._records[key]
        if live.state is WorkerState.WITHDRAWN and state is not WorkerState.WITHDRAWN:
            return Update.WITHDRAWN
        load = live.source_load if source_load is None else source_load
        self._records[key] = (publication, Liveness(state, now, load))
        return Update.DONE

    async def get(self, key: WorkerKey) -> tuple[Publication, Liveness] | None:
        return self._records.get(key)

    async def list_refs(self, query: SourceQuery, stale_before: int) -> list[SourceRef]:
        keys = self._records if query.source_id is None else self._of_source.get(query.source_id, set())
        records = (self._records[key] for key in keys)
        return ordered(
            [
                dataclasses.replace(p.ref, updated_at=live.updated_at, source_load=live.source_load)
                for p, live in records
                if matches(query, p.ref, live, stale_before)
            ],
            query.limit,
        )

    async def mark_lost(self, stale_before: int) -> int:
        lost = [
            key for key, (_, live) in self._records.items() if live.state not in DEAD and live.updated_at < stale_before
        ]
        for key in lost:
            publication, live = self._records[key]
            self._records[key] = (publication, dataclasses.replace(live, state=WorkerState.LOST))
        return len(lost)

    async def delete_dead(self, stale_before: int) -> int:
        dead = [
            key for key, (_, live) in self._records.items() if live.state in DEAD and live.updated_at < stale_before
        ]
        for key in dead:
            del self._records[key]
            self._of_source[key.source_id].discard(key)
            if not self._of_source[key.source_id]:
                del self._of_source[key.source_id]
        return len(dead)

    async def usage(self) -> Usage:
        nbytes = sum(len(p.worker) + len(p.identity) for p, _ in self._records.values())
        return Usage(Counter(live.state for _, live in self._records.values()), nbytes)

    async def close(self) -> None:
        self._records.clear()
        self._of_source.clear()
