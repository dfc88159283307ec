"""Publishing a model: its tensors settle into shareable memory and this process becomes a source."""

from collections.abc import Mapping
from pathlib import Path

from modelexpress.identity import SourceIdentity
from modelexpress.peer import Material, Publication, Worker, file_specs
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Scope
from modelexpress.transfer.seal import seal
from modelexpress.weights.catalog import Model, catalogue
from modelexpress.weights.offering import publish_material, read_files
from modelexpress.weights.settle import settle


def publish(
    model: Model,
    identity: SourceIdentity,
    rank: int = 0,
    *,
    registry: str | None = None,
    files: Path | str | Mapping[str, bytes] | None = None,
    worker: Worker | None = None,
    settings: Settings | None = None,
) -> Publication:
    """Make this process a source of a model until the returned publication is closed.

    Tensors in host memory are moved into shareable memory, one storage at a time, and stay the same objects; on CUDA
    devices they stay where they are. They must not be changed while they are published: targets would find out by
    their digests and refuse them.

    Args:
        model: A module, or tensors by name, in host memory or on CUDA devices.
        identity: What the weights are; targets with an equal identity get them.
        rank: Of this worker within its replica.
        registry: HOST:PORT of the registry; None takes it from the environment.
        files: A checkpoint folder whose configuration and tokenizer files targets may ask for, or such files.
        worker: Serves the material; None starts one that ends with the publication.
        settings: Read from the environment when None.

    Returns:
        The publication: a context manager. The registry may learn of it a moment later (`wait_ready`).

    Raises:
        UnsupportedModel: A tensor cannot be offered.
        ConfigurationError: The worker server cannot listen.

    Example:
        >>> with publish(model, identity, registry="localhost:8001") as publication:  # doctest: +SKIP
        ...     publication.wait_ready(10)
    """
    settings = settings or Settings.read()
    entries = catalogue(model)
    contents = files if isinstance(files, Mapping) else read_files(Path(files)) if files else {}
    settled = settle(entries)
    manifest = seal(
        settled.tensors,
        settled.regions,
        scope=Scope.MODULE,
        chunk_bytes=settings.chunk_bytes,
        files=file_specs(contents),
    )
    material = Material(identity, rank, manifest, settled.regions, settled.owners, contents)
    return publish_material(material, registry, worker, settings)
