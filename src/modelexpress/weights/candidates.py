"""Candidates: which sources a target asks, and in which order."""

import hashlib
from collections.abc import Sequence

from modelexpress.client import Client
from modelexpress.identity import SourceIdentity
from modelexpress.peer import HOST_TOPOLOGY
from modelexpress.wire.records import SourceRef, SourceStatus


def find_candidates(client: Client, identity: SourceIdentity, rank: int, accelerator: str = "") -> list[SourceRef]:
    """Return the ready sources of an identity and rank that this accelerator can read.

    Raises:
        RegistryError: The registry could not be asked.
    """
    refs = client.list_sources(identity, status=SourceStatus.READY, worker_rank=rank)
    return [ref for ref in refs if not ref.accelerator or not accelerator or ref.accelerator == accelerator]


def order_candidates(refs: Sequence[SourceRef], host: str, reader: str) -> list[SourceRef]:
    """Order sources: fewest readers first, this host first, rendezvous hashing between equals.

    Args:
        refs: The candidates.
        host: Host id of the target.
        reader: Worker id of the target; readers that see the same sources spread over them.
    """

    def key(ref: SourceRef) -> tuple[float, bool, bytes]:
        distance = hashlib.sha256(f"{reader}\0{ref.worker_id}".encode()).digest()
        return (ref.source_load or 0.0, ref.topology.get(HOST_TOPOLOGY) != host, distance)

    return sorted(refs, key=key)
