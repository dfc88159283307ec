"""The filters of a listing, for stores that have no query language."""

from modelexpress.registry.store.base import Liveness
from modelexpress.wire.limits import MAX_LISTED
from modelexpress.wire.records import SourceQuery, SourceRef


def matches(query: SourceQuery, ref: SourceRef, live: Liveness, stale_before: int) -> bool:
    """Return whether a record passes every filter (see `Store.list_refs`)."""
    if query.source_id is not None and ref.source_id != query.source_id:
        return False
    if query.status is not None and live.status(stale_before) is not query.status:
        return False
    if query.model_name is not None and ref.model_name.lower() != query.model_name.lower():
        return False
    if query.worker_rank is not None and ref.worker_rank != query.worker_rank:
        return False
    if query.min_training_step is not None and (
        ref.training_step is None or ref.training_step < query.min_training_step
    ):
        return False
    return query.min_updated_at is None or live.updated_at >= query.min_updated_at


def ordered(refs: list[SourceRef], limit: int | None) -> list[SourceRef]:
    """Return the first `limit` rows, the ones heard last first, then by worker id and source id."""
    refs.sort(key=lambda ref: (-ref.updated_at, ref.worker_id, ref.source_id))
    return refs[: row_limit(limit)]


def row_limit(limit: int | None) -> int:
    """Return how many rows a listing may have."""
    return MAX_LISTED if limit is None else min(limit, MAX_LISTED)
