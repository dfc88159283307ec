"""The registry's calls as data: what both clients send, and how they read the answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelexpress.identity import SourceIdentity
from modelexpress.wire import registry_answers as answers
from modelexpress.wire import registry_requests as requests
from modelexpress.wire.p2p_service import method
from modelexpress.wire.records import (
    SourceQuery,
    SourceRef,
    SourceStatus,
    StatusUpdate,
    WorkerKey,
    WorkerRecord,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One call: gRPC path, request bytes, and what turns the answer's bytes into its value."""

    path: str
    request: bytes
    read: Callable[[bytes], Answer]


def publish(identity: SourceIdentity, record: WorkerRecord) -> Call[str]:
    """Return the call that publishes a worker; its value is the source id."""
    return Call(method("PublishMetadata"), requests.encode_publish(identity, record), answers.decode_published)


def list_sources(query: SourceQuery, identity: SourceIdentity | None) -> Call[list[SourceRef]]:
    """Return the call that lists workers."""
    return Call(method("ListSources"), requests.encode_list(query, identity), answers.decode_listing)


def get(source_id: str, worker_id: str) -> Call[tuple[WorkerRecord, SourceIdentity] | None]:
    """Return the call that gets one worker's record."""
    key = WorkerKey(source_id, worker_id)
    return Call(method("GetMetadata"), requests.encode_get(key), answers.decode_record)


def update_status(
    source_id: str, worker_id: str, worker_rank: int, status: SourceStatus, source_load: float | None
) -> Call[bool]:
    """Return the call that updates a worker's status; its value is whether there was a record to update."""
    update = StatusUpdate(
        key=WorkerKey(source_id, worker_id), worker_rank=worker_rank, status=status, source_load=source_load
    )
    return Call(method("UpdateStatus"), requests.encode_update(update), answers.decode_updated)
