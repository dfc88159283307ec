"""The SQL of the SQLite store."""

from modelexpress.registry.store.base import DEAD, WorkerState
from modelexpress.registry.store.matching import row_limit
from modelexpress.wire.records import SourceQuery, SourceStatus

SCHEMA = """
CREATE TABLE IF NOT EXISTS publication (
    number INTEGER PRIMARY KEY,
    source_id TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    model_name TEXT NOT NULL,
    model_key TEXT NOT NULL,
    worker_rank INTEGER NOT NULL,
    accelerator TEXT NOT NULL,
    training_step INTEGER,
    layout_signature TEXT,
    topology TEXT NOT NULL,
    identity BLOB NOT NULL,
    worker BLOB NOT NULL,
    UNIQUE (source_id, worker_id)
);
CREATE INDEX IF NOT EXISTS publication_by_model ON publication (model_key);
CREATE TABLE IF NOT EXISTS liveness (
    number INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    nbytes INTEGER NOT NULL,
    source_load REAL
);
"""

REF_FIELDS = (
    "source_id",
    "worker_id",
    "model_name",
    "worker_rank",
    "accelerator",
    "training_step",
    "layout_signature",
    "topology",
    "updated_at",
    "source_load",
)
"""Columns of a row of a listing, named as the fields of `SourceRef`."""

PUBLISH = """
INSERT INTO publication (source_id, worker_id, model_name, model_key, worker_rank, accelerator, training_step,
                         layout_signature, topology, identity, worker)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (source_id, worker_id) DO UPDATE SET
    model_name = excluded.model_name, model_key = excluded.model_key, worker_rank = excluded.worker_rank,
    accelerator = excluded.accelerator, training_step = excluded.training_step,
    layout_signature = excluded.layout_signature, topology = excluded.topology, identity = excluded.identity,
    worker = excluded.worker
RETURNING number
"""
START_LIFE = "INSERT OR REPLACE INTO liveness (number, state, updated_at, nbytes) VALUES (?, ?, ?, ?)"

FIND = "SELECT number FROM publication WHERE source_id = ? AND worker_id = ?"
UPDATE = f"""
UPDATE liveness SET state = ?, updated_at = ?, source_load = coalesce(?, source_load)
WHERE number = ({FIND}) AND (state <> {WorkerState.WITHDRAWN:d} OR ? = {WorkerState.WITHDRAWN:d})
"""

_ROWS = f"SELECT {', '.join(REF_FIELDS)} FROM publication JOIN liveness USING (number)"
GET = (
    f"SELECT {', '.join(REF_FIELDS)}, identity, worker, state FROM publication JOIN liveness USING (number) "
    "WHERE source_id = ? AND worker_id = ?"
)

MARK_LOST = "UPDATE liveness SET state = ? WHERE state NOT IN (?, ?) AND updated_at < ?"
FIND_DEAD = "SELECT number FROM liveness WHERE state IN (?, ?) AND updated_at < ?"
DELETE_PUBLICATION = "DELETE FROM publication WHERE number = ?"
DELETE_LIFE = "DELETE FROM liveness WHERE number = ?"
USAGE = "SELECT state, count(*), sum(nbytes) FROM liveness GROUP BY state"

_LARGEST_INTEGER = 2**63 - 1


def listing(query: SourceQuery, stale_before: int) -> tuple[str, list[object]]:
    """Return the statement, and its values, that finds the rows of a query (see `Store.list_refs`)."""
    filters: list[tuple[str, tuple[object, ...]]] = []
    if query.source_id is not None:
        filters.append(("source_id = ?", (query.source_id,)))
    if query.status is SourceStatus.STALE:
        filters.append(("(state IN (?, ?) OR updated_at < ?)", (*DEAD, stale_before)))
    elif query.status is not None:
        filters.append(("state = ? AND updated_at >= ?", (query.status, stale_before)))
    if query.model_name is not None:
        filters.append(("model_key = ?", (query.model_name.lower(),)))
    if query.worker_rank is not None:
        filters.append(("worker_rank = ?", (query.worker_rank,)))
    if query.min_training_step is not None:
        # The protocol's steps have 64 bits and SQLite's integers 63; publications are cut to these.
        filters.append(("training_step >= ?", (min(query.min_training_step, _LARGEST_INTEGER),)))
    if query.min_updated_at is not None:
        filters.append(("updated_at >= ?", (query.min_updated_at,)))
    where = " WHERE " + " AND ".join(text for text, _ in filters) if filters else ""
    values = [value for _, some in filters for value in some]
    order = " ORDER BY updated_at DESC, worker_id, source_id LIMIT ?"
    return f"{_ROWS}{where}{order}", [*values, row_limit(query.limit)]
