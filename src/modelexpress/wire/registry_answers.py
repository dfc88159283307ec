"""The four answers of a registry: bytes on the wire and our dataclasses, in both directions."""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from modelexpress.errors import IdentityError, RegistryProtocolError, RegistryRefused
from modelexpress.identity import SourceIdentity
from modelexpress.wire import p2p_pb2
from modelexpress.wire.p2p import (
    identity_from_message,
    ref_from_message,
    ref_to_message,
    worker_from_message,
)
from modelexpress.wire.records import Publication, SourceRef, SourceStatus, WorkerKey, WorkerRecord

_M = TypeVar("_M", bound=Message)


def encode_published(key: WorkerKey) -> bytes:
    """Return the answer to a publication, with the source id as the registry computed it."""
    return p2p_pb2.PublishMetadataResponse(
        success=True, mx_source_id=key.source_id, worker_id=key.worker_id
    ).SerializeToString()


def decode_published(data: bytes) -> str:
    """Return the source id in the answer to a publication.

    Raises:
        RegistryProtocolError: The bytes are no such answer.
        RegistryRefused: The registry did not take the publication.
    """
    answer = _parse(p2p_pb2.PublishMetadataResponse, data)
    if not answer.success:
        raise RegistryRefused(f"the registry refused the publication: {answer.message}")
    return answer.mx_source_id


def encode_listing(refs: Iterable[SourceRef]) -> bytes:
    """Return a listing."""
    return p2p_pb2.ListSourcesResponse(instances=map(ref_to_message, refs)).SerializeToString()


def decode_listing(data: bytes) -> list[SourceRef]:
    """Return the rows of a listing.

    Raises:
        RegistryProtocolError: The bytes are no such answer.
    """
    return [ref_from_message(message) for message in _parse(p2p_pb2.ListSourcesResponse, data).instances]


def encode_found(publication: Publication, status: SourceStatus, updated_at: int) -> bytes:
    """Return a record as it was published, with its present status and last heartbeat (milliseconds)."""
    answer = p2p_pb2.GetMetadataResponse(
        found=True, mx_source_id=publication.key.source_id, worker_id=publication.key.worker_id
    )
    answer.identity.ParseFromString(publication.identity)
    answer.worker.ParseFromString(publication.worker)
    answer.worker.status = p2p_pb2.SourceStatus.ValueType(status)
    answer.worker.updated_at = updated_at
    return answer.SerializeToString()


def encode_not_found(key: WorkerKey) -> bytes:
    """Return the answer to a question for a record that is not there."""
    return p2p_pb2.GetMetadataResponse(
        found=False, mx_source_id=key.source_id, worker_id=key.worker_id
    ).SerializeToString()


def decode_record(data: bytes) -> tuple[WorkerRecord, SourceIdentity] | None:
    """Return the record in an answer, or None where there is none.

    Raises:
        RegistryProtocolError: The bytes are no such answer.
    """
    answer = _parse(p2p_pb2.GetMetadataResponse, data)
    if not answer.found:
        return None
    try:
        identity = identity_from_message(answer.identity)
    except IdentityError as error:
        raise RegistryProtocolError(f"the record of {answer.worker_id} cannot be read: {error}") from error
    return worker_from_message(answer.worker, answer.worker_id), identity


def encode_updated(done: bool, message: str = "") -> bytes:
    """Return whether a status was updated, and if not, why."""
    return p2p_pb2.UpdateStatusResponse(success=done, message=message).SerializeToString()


def decode_updated(data: bytes) -> bool:
    """Return whether there was a record to update.

    Raises:
        RegistryProtocolError: The bytes are no such answer.
    """
    return _parse(p2p_pb2.UpdateStatusResponse, data).success


def _parse(kind: type[_M], data: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RegistryProtocolError(f"the answer is no {kind.DESCRIPTOR.name}: {error}") from error
    return message
