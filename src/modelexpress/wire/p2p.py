"""Conversions between the messages of `model_express.p2p` and our dataclasses, field by field."""

from collections.abc import Iterable
from typing import TypeVar

from modelexpress.errors import IdentityError
from modelexpress.identity import BackendFramework, SourceIdentity, SourceType
from modelexpress.wire import p2p_pb2
from modelexpress.wire.records import ArtifactSummary, SourceRef, SourceStatus, TensorDescriptor, WorkerRecord

_Enum = TypeVar("_Enum", SourceType, BackendFramework)


def identity_to_message(identity: SourceIdentity) -> p2p_pb2.SourceIdentity:
    """Return an identity as the protocol carries it.

    Raises:
        IdentityError: A string is not valid Unicode (a lone surrogate), which protobuf cannot carry.
    """
    try:
        return p2p_pb2.SourceIdentity(
            mx_version=identity.mx_version,
            mx_source_type=p2p_pb2.MxSourceType.ValueType(identity.mx_source_type),
            model_name=identity.model_name,
            backend_framework=p2p_pb2.BackendFramework.ValueType(identity.backend_framework),
            tensor_parallel_size=identity.tensor_parallel_size,
            pipeline_parallel_size=identity.pipeline_parallel_size,
            expert_parallel_size=identity.expert_parallel_size,
            dtype=identity.dtype,
            quantization=identity.quantization,
            extra_parameters=dict(identity.extra_parameters),
            revision=identity.revision,
            backend_framework_version=identity.backend_framework_version,
            torch_version=identity.torch_version,
            cuda_version=identity.cuda_version,
            triton_version=identity.triton_version,
            gpu_arch=identity.gpu_arch,
            compile_config_digest=identity.compile_config_digest,
        )
    except UnicodeEncodeError as error:
        raise IdentityError(f"an identity must be valid Unicode, not {error.object!r}") from None


def identity_from_message(message: p2p_pb2.SourceIdentity) -> SourceIdentity:
    """Return the identity in a message.

    Raises:
        IdentityError: An enum has a number that this version does not know.
    """
    return SourceIdentity(
        mx_version=message.mx_version,
        mx_source_type=_known(SourceType, message.mx_source_type),
        model_name=message.model_name,
        backend_framework=_known(BackendFramework, message.backend_framework),
        tensor_parallel_size=message.tensor_parallel_size,
        pipeline_parallel_size=message.pipeline_parallel_size,
        expert_parallel_size=message.expert_parallel_size,
        dtype=message.dtype,
        quantization=message.quantization,
        extra_parameters=dict(message.extra_parameters),
        revision=message.revision,
        backend_framework_version=message.backend_framework_version,
        torch_version=message.torch_version,
        cuda_version=message.cuda_version,
        triton_version=message.triton_version,
        gpu_arch=message.gpu_arch,
        compile_config_digest=message.compile_config_digest,
    )


def tensor_to_message(tensor: TensorDescriptor) -> p2p_pb2.TensorDescriptor:
    """Return one tensor as the protocol carries it."""
    return p2p_pb2.TensorDescriptor(
        name=tensor.name, addr=tensor.addr, size=tensor.size, device_id=tensor.device_id, dtype=tensor.dtype
    )


def tensors_from_messages(messages: Iterable[p2p_pb2.TensorDescriptor]) -> tuple[TensorDescriptor, ...]:
    """Return the tensors in a list of messages, in their order."""
    return tuple(
        TensorDescriptor(name=m.name, addr=m.addr, size=m.size, device_id=m.device_id, dtype=m.dtype) for m in messages
    )


def worker_to_message(record: WorkerRecord) -> p2p_pb2.WorkerMetadata:
    """Return a worker's record as the protocol carries it; the worker id travels beside it.

    Of `nixl_metadata` and `transfer_engine_session_id` the protocol carries one, the first that is set; of
    `artifact` and `tensors` likewise.
    """
    message = p2p_pb2.WorkerMetadata(
        worker_rank=record.worker_rank,
        status=p2p_pb2.SourceStatus.ValueType(record.status),
        updated_at=record.updated_at,
        metadata_endpoint=record.metadata_endpoint,
        agent_name=record.agent_name,
        worker_grpc_endpoint=record.worker_grpc_endpoint,
        accelerator=record.accelerator,
        topology=dict(record.topology),
    )
    if record.nixl_metadata:
        message.nixl_metadata = record.nixl_metadata
    elif record.transfer_engine_session_id:
        message.transfer_engine_session_id = record.transfer_engine_session_id
    if record.artifact is not None:
        message.artifact_source.CopyFrom(_artifact_to_message(record.artifact))
    else:
        message.tensor_source.tensors.extend(map(tensor_to_message, record.tensors))
    return message


def worker_from_message(message: p2p_pb2.WorkerMetadata, worker_id: str) -> WorkerRecord:
    """Return the record in a message; a status that this version does not know reads as UNKNOWN.

    Tensors come from `source_payload`, and from the old top-level list where that has none.
    """
    artifact = None
    if message.WhichOneof("source_payload") == "artifact_source":
        artifact = _artifact_from_message(message.artifact_source)
    return WorkerRecord(
        worker_id=worker_id,
        worker_rank=message.worker_rank,
        status=status_from_number(message.status),
        updated_at=message.updated_at,
        worker_grpc_endpoint=message.worker_grpc_endpoint,
        metadata_endpoint=message.metadata_endpoint,
        agent_name=message.agent_name,
        accelerator=message.accelerator,
        topology=dict(message.topology),
        nixl_metadata=message.nixl_metadata,
        transfer_engine_session_id=message.transfer_engine_session_id,
        tensors=tensors_from_messages(message.tensor_source.tensors or message.tensors),
        artifact=artifact,
    )


def ref_to_message(ref: SourceRef) -> p2p_pb2.SourceInstanceRef:
    """Return one row of a listing as the protocol carries it."""
    return p2p_pb2.SourceInstanceRef(
        mx_source_id=ref.source_id,
        worker_id=ref.worker_id,
        model_name=ref.model_name,
        worker_rank=ref.worker_rank,
        accelerator=ref.accelerator,
        updated_at=ref.updated_at,
        training_step=ref.training_step,
        layout_signature=ref.layout_signature,
        topology=dict(ref.topology),
        source_load=ref.source_load,
    )


def ref_from_message(message: p2p_pb2.SourceInstanceRef) -> SourceRef:
    """Return the row of a listing in a message."""
    return SourceRef(
        source_id=message.mx_source_id,
        worker_id=message.worker_id,
        model_name=message.model_name,
        worker_rank=message.worker_rank,
        accelerator=message.accelerator,
        updated_at=message.updated_at,
        training_step=message.training_step if message.HasField("training_step") else None,
        layout_signature=message.layout_signature if message.HasField("layout_signature") else None,
        topology=dict(message.topology),
        source_load=message.source_load if message.HasField("source_load") else None,
    )


def status_from_number(number: int) -> SourceStatus:
    """Return the status of a protocol number, UNKNOWN for one that this version does not know."""
    try:
        return SourceStatus(number)
    except ValueError:
        return SourceStatus.UNKNOWN


def _known(kind: type[_Enum], number: int) -> _Enum:
    try:
        return kind(number)
    except ValueError:
        raise IdentityError(f"{kind.__name__} has no member {number}: a newer version is needed to read it") from None


def _artifact_to_message(artifact: ArtifactSummary) -> p2p_pb2.ArtifactSourceMetadata:
    return p2p_pb2.ArtifactSourceMetadata(
        artifact_id=artifact.artifact_id,
        total_size=artifact.total_size,
        file_count=artifact.file_count,
        chunk_count=artifact.chunk_count,
        node_rank=artifact.node_rank,
    )


def _artifact_from_message(message: p2p_pb2.ArtifactSourceMetadata) -> ArtifactSummary:
    return ArtifactSummary(
        artifact_id=message.artifact_id,
        total_size=message.total_size,
        file_count=message.file_count,
        chunk_count=message.chunk_count,
        node_rank=message.node_rank,
    )
