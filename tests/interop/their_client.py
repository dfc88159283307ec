"""Runs in the other package's environment: makes the calls that lines of standard input name.

Each answer is one line of JSON.
"""

import importlib.metadata
import json
import sys
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from modelexpress.metadata.source_id import compute_mx_source_id  # type: ignore[import-not-found]

from modelexpress import p2p_pb2
from modelexpress.client import MxClient  # type: ignore[attr-defined]


def as_dict(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, use_integers_for_enums=True)


def identity_of(fields: dict[str, Any]) -> Any:
    return ParseDict(fields, p2p_pb2.SourceIdentity())


def source_ids(identities: list[dict[str, Any]]) -> list[str]:
    return [compute_mx_source_id(identity_of(fields)) for fields in identities]


def version() -> str:
    return importlib.metadata.version("modelexpress")


def publish(address: str, identity: dict[str, Any], worker: dict[str, Any], worker_id: str) -> str:
    record = ParseDict(worker, p2p_pb2.WorkerMetadata())
    return str(MxClient(address).publish_metadata(identity_of(identity), record, worker_id))


def list_sources(address: str, identity: dict[str, Any] | None = None, status: int | None = None) -> Any:
    wanted = None if identity is None else identity_of(identity)
    return as_dict(MxClient(address).list_sources(wanted, status))


def get(address: str, source_id: str, worker_id: str) -> Any:
    return as_dict(MxClient(address).get_metadata(source_id, worker_id))


def update(address: str, source_id: str, worker_id: str, rank: int, status: int, load: float | None = None) -> bool:
    return bool(MxClient(address).update_status(source_id, worker_id, rank, status, load))


def artifact(address: str, identity: dict[str, Any]) -> Any:
    """Find a source of a cache and read its sealed manifest, with every check that their target makes."""
    from modelexpress.metadata import artifact_transfer as theirs  # type: ignore[import-not-found]

    found = theirs.discover_artifact_source(MxClient(address), identity_of(identity), node_rank=0)
    where = (found.worker_grpc_endpoint, found.mx_source_id)
    header, _ = theirs.fetch_artifact_manifest_header(where[0], mx_source_id=where[1], artifact_id=found.artifact_id)
    chunks = theirs._fetch_all_chunks(*where, header.artifact_id, expected_chunk_count=header.chunk_count)
    theirs._validate_fetched_artifact_manifest(header, chunks, found.artifact_id)
    return as_dict(header)


CALLS = {
    function.__name__: function for function in (source_ids, version, publish, list_sources, get, update, artifact)
}

if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(CALLS[request["name"]](**request["arguments"])), flush=True)  # noqa: T201
