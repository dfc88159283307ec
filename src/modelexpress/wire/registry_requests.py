"""The four requests to a registry: bytes on the wire and our dataclasses, in both directions."""

import math
import re
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from modelexpress.errors import IdentityError, RequestInvalid
from modelexpress.identity import SourceIdentity
from modelexpress.wire import p2p_pb2
from modelexpress.wire.limits import check_limits
from modelexpress.wire.p2p import (
    identity_from_message,
    identity_to_message,
    status_from_number,
    worker_to_message,
)
from modelexpress.wire.records import (
    Publication,
    SourceQuery,
    SourceRef,
    SourceStatus,
    StatusUpdate,
    WorkerKey,
    WorkerRecord,
)

TRAINING_STEP = "training_step"
LAYOUT_SIGNATURE = "layout_signature"
"""Publications have no fields for these two: they are read from `topology`, then from `extra_parameters`."""

_M = TypeVar("_M", bound=Message)
_SOURCE_ID = re.compile(r"[0-9a-f]{16}")
_LARGEST_STEP = 2**63 - 1  # what every store can hold as an integer


def encode_publish(identity: SourceIdentity, record: WorkerRecord) -> bytes:
    """Return a PublishMetadata request.

    Raises:
        IdentityError: The identity cannot be carried by the protocol.
    """
    return p2p_pb2.PublishMetadataRequest(
        identity=identity_to_message(identity), worker=worker_to_message(record), worker_id=record.worker_id
    ).SerializeToString()


def decode_publish(data: bytes) -> Publication:
    """Return what a PublishMetadata request publishes.

    Raises:
        RequestInvalid: It is no such request, has no worker id or identity, or breaks a limit.
    """
    request = _parse(p2p_pb2.PublishMetadataRequest, data)
    if not request.worker_id:
        raise RequestInvalid("worker_id is empty: every process needs one of its own")
    if not request.HasField("identity") or not request.HasField("worker"):
        raise RequestInvalid("a publication needs both an identity and a worker")
    identity = _identity(request.identity)
    worker = request.worker
    status = status_from_number(worker.status)
    worker.ClearField("status")
    worker.ClearField("updated_at")
    return Publication(
        ref=SourceRef(
            source_id=identity.source_id,
            worker_id=request.worker_id,
            model_name=identity.model_name,
            worker_rank=worker.worker_rank,
            accelerator=worker.accelerator,
            training_step=_step(_tag(TRAINING_STEP, worker, identity)),
            layout_signature=_tag(LAYOUT_SIGNATURE, worker, identity),
            topology=dict(worker.topology),
        ),
        status=status,
        identity=request.identity.SerializeToString(),
        worker=worker.SerializeToString(),
    )


def encode_list(query: SourceQuery, identity: SourceIdentity | None) -> bytes:
    """Return a ListSources request; the query's source id is that of `identity`, and travels as such.

    Raises:
        IdentityError: The identity cannot be carried by the protocol.
    """
    return p2p_pb2.ListSourcesRequest(
        identity=None if identity is None else identity_to_message(identity),
        status_filter=None if query.status is None else p2p_pb2.SourceStatus.ValueType(query.status),
        model_name_filter=query.model_name,
        worker_rank_filter=query.worker_rank,
        min_training_step=query.min_training_step,
        min_updated_at=query.min_updated_at,
        limit=query.limit,
    ).SerializeToString()


def decode_list(data: bytes) -> SourceQuery:
    """Return the filters of a ListSources request.

    Raises:
        RequestInvalid: It is no such request or breaks a limit.
    """
    request = _parse(p2p_pb2.ListSourcesRequest, data)

    def given(name: str) -> bool:
        return request.HasField(name)  # type: ignore[arg-type]

    return SourceQuery(
        source_id=_identity(request.identity).source_id if given("identity") else None,
        status=_status(request.status_filter) if given("status_filter") else None,
        model_name=request.model_name_filter if given("model_name_filter") else None,
        worker_rank=request.worker_rank_filter if given("worker_rank_filter") else None,
        min_training_step=request.min_training_step if given("min_training_step") else None,
        min_updated_at=request.min_updated_at if given("min_updated_at") else None,
        limit=request.limit if given("limit") else None,
    )


def encode_get(key: WorkerKey) -> bytes:
    """Return a GetMetadata request."""
    return p2p_pb2.GetMetadataRequest(mx_source_id=key.source_id, worker_id=key.worker_id).SerializeToString()


def decode_get(data: bytes) -> WorkerKey:
    """Return the record that a GetMetadata request asks for.

    Raises:
        RequestInvalid: It is no such request, or its source id is none.
    """
    request = _parse(p2p_pb2.GetMetadataRequest, data)
    return _key(request.mx_source_id, request.worker_id)


def encode_update(update: StatusUpdate) -> bytes:
    """Return an UpdateStatus request."""
    return p2p_pb2.UpdateStatusRequest(
        mx_source_id=update.key.source_id,
        worker_rank=update.worker_rank,
        status=p2p_pb2.SourceStatus.ValueType(update.status),
        worker_id=update.key.worker_id,
        source_load=update.source_load,
    ).SerializeToString()


def decode_update(data: bytes) -> StatusUpdate:
    """Return what an UpdateStatus request says.

    Raises:
        RequestInvalid: It is no such request, its source id is none, or its load is no finite number.
    """
    request = _parse(p2p_pb2.UpdateStatusRequest, data)
    load = request.source_load if request.HasField("source_load") else None
    if load is not None and not math.isfinite(load):
        raise RequestInvalid(f"source_load must be a finite number, not {load}")
    return StatusUpdate(
        key=_key(request.mx_source_id, request.worker_id),
        worker_rank=request.worker_rank,
        status=_status(request.status),
        source_load=load,
    )


def _parse(kind: type[_M], data: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RequestInvalid(f"{len(data)} bytes are no {kind.DESCRIPTOR.name}: {error}") from None
    check_limits(message)
    return message


def _identity(message: p2p_pb2.SourceIdentity) -> SourceIdentity:
    try:
        return identity_from_message(message)
    except IdentityError as error:
        raise RequestInvalid(f"identity: {error}") from None


def _status(number: int) -> SourceStatus:
    try:
        return SourceStatus(number)
    except ValueError:
        allowed = ", ".join(f"{status.name} ({status.value})" for status in SourceStatus)
        raise RequestInvalid(f"{number} is no status: use one of {allowed}") from None


def _key(source_id: str, worker_id: str) -> WorkerKey:
    if not _SOURCE_ID.fullmatch(source_id):
        raise RequestInvalid(f"mx_source_id must be 16 hex digits in lower case, not {source_id[:64]!r}")
    if not worker_id:
        raise RequestInvalid("worker_id is empty: a record is named by source id and worker id")
    return WorkerKey(source_id, worker_id)


def _tag(name: str, worker: p2p_pb2.WorkerMetadata, identity: SourceIdentity) -> str | None:
    return worker.topology.get(name) or identity.extra_parameters.get(name) or None


def _step(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 19:
        return None
    return min(int(text), _LARGEST_STEP)
