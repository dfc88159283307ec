"""Worker to worker: the server beside an engine, its publications, and the client that reads from others."""

from modelexpress.peer.client import PeerClient
from modelexpress.peer.farewell import ClosingThread
from modelexpress.peer.held_lease import HeldLease
from modelexpress.peer.host import host_id, new_worker_id
from modelexpress.peer.material import Material, file_specs
from modelexpress.peer.publication import Publication, PublicationState
from modelexpress.peer.ready import Probe, UrlProbe, wait_until_ready
from modelexpress.peer.relay import Relay
from modelexpress.peer.seeking import Seeker, Upstream
from modelexpress.peer.worker import ENDPOINT_TOPOLOGY, HOST_TOPOLOGY, Worker

__all__ = [
    "ENDPOINT_TOPOLOGY",
    "HOST_TOPOLOGY",
    "ClosingThread",
    "HeldLease",
    "Material",
    "PeerClient",
    "Probe",
    "Publication",
    "PublicationState",
    "Relay",
    "Seeker",
    "Upstream",
    "UrlProbe",
    "Worker",
    "file_specs",
    "host_id",
    "new_worker_id",
    "wait_until_ready",
]
