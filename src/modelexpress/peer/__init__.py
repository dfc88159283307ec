"""Worker to worker: the server beside an engine, its publications, and the client that reads from others."""

from modelexpress.peer.client import HeldLease, PeerClient
from modelexpress.peer.host import host_id, new_worker_id
from modelexpress.peer.material import Material, file_specs
from modelexpress.peer.publication import Publication, PublicationState
from modelexpress.peer.worker import HOST_TOPOLOGY, Worker

__all__ = [
    "HOST_TOPOLOGY",
    "HeldLease",
    "Material",
    "PeerClient",
    "Publication",
    "PublicationState",
    "Worker",
    "file_specs",
    "host_id",
    "new_worker_id",
]
