"""The other make finds our caches in the registry, and takes our sealed manifests for what they are."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from modelexpress.wire.p2p import identity_to_message
from tests.support.artifact_source import ArtifactSource
from tests.support.caches import KINDS
from tests.support.materials import new_identity

pytestmark = pytest.mark.interop


def test_their_target_finds_our_cache_and_checks_its_manifest(ask: Callable[..., Any], registry: str) -> None:
    base = new_identity()
    identity = MessageToDict(identity_to_message(KINDS["plain"].identity(base)), preserving_proto_field_name=True)
    with ArtifactSource(registry, base, 3, 2_500_000) as source:
        header = ask("artifact", address=registry, identity=identity)
    assert header["artifact_id"] == source.artifact_id
    assert (header["file_count"], header["chunk_count"], header["total_size"]) == (4, 9, "7500000")
    assert [file["path"] for file in header["files"]][-1] == "/marker"
