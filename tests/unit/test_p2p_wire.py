"""Records, listings and requests survive the wire; limits and odd messages are handled as documented."""

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import RegistryProtocolError, RegistryRefused, RequestInvalid
from modelexpress.identity import SourceIdentity
from modelexpress.wire import p2p_pb2, registry_answers, registry_requests
from modelexpress.wire.p2p import ref_from_message, ref_to_message, worker_from_message, worker_to_message
from modelexpress.wire.records import (
    ArtifactSummary,
    SourceQuery,
    SourceRef,
    SourceStatus,
    StatusUpdate,
    TensorDescriptor,
    WorkerKey,
    WorkerRecord,
)
from tests.support.identities import TEXT

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TIMES = st.integers(0, 2**63 - 1)
LOADS = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
SOURCE_IDS = st.text("0123456789abcdef", min_size=16, max_size=16)
WORKER_IDS = TEXT.filter(bool)
TENSORS = st.lists(st.builds(TensorDescriptor, TEXT, U64, U64, U32, TEXT), max_size=4).map(tuple)
ARTIFACTS = st.builds(ArtifactSummary, TEXT, U64, U32, U32, U32)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)


def workers() -> st.SearchStrategy[WorkerRecord]:
    """Return records as the protocol can carry them: tensors or an artifact, NIXL or a session."""
    common = {
        "worker_id": WORKER_IDS,
        "worker_rank": U32,
        "status": st.sampled_from(SourceStatus),
        "updated_at": TIMES,
        "worker_grpc_endpoint": TEXT,
        "metadata_endpoint": TEXT,
        "agent_name": TEXT,
        "accelerator": TEXT,
        "topology": LABELS,
    }
    return st.one_of(
        st.builds(WorkerRecord, **common, tensors=TENSORS, nixl_metadata=st.binary(max_size=20)),
        st.builds(WorkerRecord, **common, artifact=ARTIFACTS, transfer_engine_session_id=TEXT),
    )


@given(record=workers())
def test_a_record_survives_the_wire(record: WorkerRecord) -> None:
    assert worker_from_message(worker_to_message(record), record.worker_id) == record


@given(
    ref=st.builds(
        SourceRef,
        source_id=SOURCE_IDS,
        worker_id=WORKER_IDS,
        model_name=TEXT,
        worker_rank=U32,
        accelerator=TEXT,
        updated_at=TIMES,
        training_step=st.none() | U64,
        layout_signature=st.none() | TEXT,
        topology=LABELS,
        source_load=LOADS,
    )
)
def test_a_listing_survives_the_wire(ref: SourceRef) -> None:
    assert ref_from_message(ref_to_message(ref)) == ref


@given(
    query=st.builds(
        SourceQuery,
        status=st.none() | st.sampled_from(SourceStatus),
        model_name=st.none() | TEXT,
        worker_rank=st.none() | U32,
        min_training_step=st.none() | U64,
        min_updated_at=st.none() | TIMES,
        limit=st.none() | U32,
    ),
    identity=st.none() | st.just(SourceIdentity(model_name="M")),
)
def test_a_query_survives_the_wire(query: SourceQuery, identity: SourceIdentity | None) -> None:
    source_id = None if identity is None else identity.source_id
    expected = dataclasses.replace(query, source_id=source_id)
    assert registry_requests.decode_list(registry_requests.encode_list(query, identity)) == expected


@given(
    update=st.builds(
        StatusUpdate,
        key=st.builds(WorkerKey, SOURCE_IDS, WORKER_IDS),
        worker_rank=U32,
        status=st.sampled_from(SourceStatus),
        source_load=LOADS,
    )
)
def test_an_update_survives_the_wire(update: StatusUpdate) -> None:
    assert registry_requests.decode_update(registry_requests.encode_update(update)) == update


@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode in (
        registry_requests.decode_publish,
        registry_requests.decode_list,
        registry_requests.decode_get,
        registry_requests.decode_update,
    ):
        with contextlib.suppress(RequestInvalid):
            decode(data)


def test_tensors_fall_back_to_the_old_list() -> None:
    old = p2p_pb2.WorkerMetadata(tensors=[p2p_pb2.TensorDescriptor(name="old", addr=1, size=2)])
    assert worker_from_message(old, "w").tensors == (TensorDescriptor("old", 1, 2, 0, ""),)
    old.tensor_source.tensors.add(name="new")
    assert [tensor.name for tensor in worker_from_message(old, "w").tensors] == ["new"]


def test_fields_of_a_newer_protocol_survive_the_registry() -> None:
    request = p2p_pb2.PublishMetadataRequest(worker_id="w")
    request.identity.model_name = "m"
    unknown = b"\xa2\x06\x03new"
    request.worker.MergeFromString(unknown)
    publication = registry_requests.decode_publish(request.SerializeToString())
    answer = registry_answers.encode_found(publication, SourceStatus.READY, 7)
    assert unknown in p2p_pb2.GetMetadataResponse.FromString(answer).worker.SerializeToString()


def test_a_status_of_a_newer_protocol_reads_as_unknown() -> None:
    message = p2p_pb2.WorkerMetadata.FromString(b"\x20\x63")
    assert worker_from_message(message, "w").status is SourceStatus.UNKNOWN


@pytest.mark.parametrize(
    ("text", "step"),
    [("7", 7), ("0", 0), ("", None), ("-1", None), ("1.5", None), ("٣", None), ("9" * 19, 2**63 - 1), ("9" * 40, None)],
)
def test_a_training_step_is_a_whole_number(text: str, step: int | None) -> None:
    record = WorkerRecord(worker_id="w", topology={registry_requests.TRAINING_STEP: text})
    data = registry_requests.encode_publish(SourceIdentity(), record)
    assert registry_requests.decode_publish(data).ref.training_step == step


def test_a_refused_publication_says_why() -> None:
    answer = p2p_pb2.PublishMetadataResponse(success=False, message="because").SerializeToString()
    with pytest.raises(RegistryRefused, match="because"):
        registry_answers.decode_published(answer)


@pytest.mark.parametrize(
    "decode",
    [
        registry_answers.decode_published,
        registry_answers.decode_listing,
        registry_answers.decode_record,
        registry_answers.decode_updated,
    ],
)
def test_an_answer_that_is_none_is_named(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(RegistryProtocolError, match="Response"):
        decode(b"\xff")
