"""Offering a cache: its snapshot becomes a material, which travels like the weights of a model."""

import json

from modelexpress.artifacts.signing import Signer
from modelexpress.artifacts.snapshot import Snapshot
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Material, Publication, Worker, file_specs
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Scope
from modelexpress.transfer.seal import seal
from modelexpress.wire.records import TensorSpec

SEALED_FILE = "sealed.json"
"""Small file of the material: the canonical JSON of the sealed manifest. Its SHA-256 is the artifact id."""

SIGNATURE_FILE = "signature"
"""Small file of the material: the signature over it, where the source has a key."""

TIMES_FILE = "mtimes.json"
"""Small file of the material: when each file was changed, nanoseconds since the epoch, in the order of the manifest."""


def offer(
    snapshot: Snapshot,
    identity: SourceIdentity,
    *,
    worker: Worker,
    node_rank: int = 0,
    signer: Signer | None = None,
    settings: Settings | None = None,
) -> Publication:
    """Make a worker a source of a cache until the publication, or the worker, is closed.

    A worker may offer many caches; closing the publication of one leaves the others alone.

    Args:
        snapshot: The files, sealed; closed along with the publication.
        identity: Of the cache, as its kind made it.
        worker: Serves it.
        node_rank: Of this host within its replica: caches of other node ranks hold the kernels of other ranks.
        signer: Signs the artifact; None: targets that demand a signature refuse it.
        settings: Read from the environment when None.

    Returns:
        The publication: a context manager. The registry may learn of it a moment later (`wait_ready`).

    Raises:
        ConfigurationError: The worker offers a cache of this identity already, or is closed.
        TransportUnavailable: No transport can offer the memory.
    """
    settings = settings or Settings.read()
    publication = worker.publish(_material(snapshot, identity, node_rank, signer, settings.chunk_bytes))
    publication.close_along(snapshot)
    return publication


def _material(
    snapshot: Snapshot, identity: SourceIdentity, node_rank: int, signer: Signer | None, chunk_bytes: int
) -> Material:
    sealed, region = snapshot.manifest, snapshot.arena.region
    files = {
        SEALED_FILE: sealed.canonical_json(),
        TIMES_FILE: json.dumps(list(snapshot.mtimes), separators=(",", ":")).encode(),
    }
    if signer is not None:
        files[SIGNATURE_FILE] = signer.sign(snapshot)
    tensors = [
        TensorSpec(file.path, "uint8", (file.size,), (1,), 0, offset, file.size)
        for file, offset in zip(sealed.files, snapshot.offsets, strict=True)
    ]
    manifest = seal(tensors, [region], scope=Scope.ARTIFACT, chunk_bytes=chunk_bytes, files=file_specs(files))
    return Material(identity, node_rank, manifest, (region,), (snapshot.arena,), files, artifact=sealed)
