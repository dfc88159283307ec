"""Serving a checkpoint folder from host memory: a cache for the fleet that needs no engine."""

import ctypes
from pathlib import Path

import numpy as np

from modelexpress.identity import SourceIdentity
from modelexpress.memory import HostArena, aligned
from modelexpress.peer import Material, Publication, Worker, file_specs
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Scope, contiguous_strides
from modelexpress.transfer.seal import seal
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.offering import publish_material, read_files
from modelexpress.weights.report import Progress
from modelexpress.wire.records import TensorSpec


def publish_folder(
    folder: Path | str,
    identity: SourceIdentity,
    *,
    registry: str | None = None,
    worker: Worker | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> Publication:
    """Read a checkpoint into memory once, and serve it until the returned publication is closed.

    Args:
        folder: Holds safetensors files, configuration and tokenizer.
        identity: What the weights are.
        registry: HOST:PORT of the registry; None takes it from the environment.
        worker: Serves the material; None starts one that ends with the publication.
        progress: Told the bytes read and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        CheckpointError: The folder is missing, incomplete or damaged.
        ConfigurationError: The worker server cannot listen.
    """
    settings = settings or Settings.read()
    with Checkpoint.open(Path(folder)) as checkpoint:
        arena, tensors = _read(checkpoint, progress)
    files = read_files(Path(folder))
    manifest = seal(
        tensors,
        [arena.region],
        scope=Scope.CHECKPOINT,
        chunk_bytes=settings.chunk_bytes,
        files=file_specs(files),
    )
    material = Material(identity, 0, manifest, (arena.region,), (arena,), files)
    return publish_material(material, registry, worker, settings)


def _read(checkpoint: Checkpoint, progress: Progress | None) -> tuple[HostArena, list[TensorSpec]]:
    stored = checkpoint.tensors.values()
    arena = HostArena(sum(aligned(tensor.nbytes) for tensor in stored))
    specs, offset, done = [], 0, 0
    for tensor in stored:
        _copy(arena.region.address + offset, checkpoint.buffer(tensor.name))
        strides = contiguous_strides(tensor.shape)
        specs.append(TensorSpec(tensor.name, tensor.dtype, tensor.shape, strides, 0, offset, tensor.nbytes))
        offset += aligned(tensor.nbytes)
        done += tensor.nbytes
        if progress is not None:
            progress(done, checkpoint.total_bytes)
    return arena, specs


def _copy(address: int, content: memoryview) -> None:
    # Through numpy, which gives the address of a read-only buffer; memmove runs without the GIL.
    source = np.frombuffer(content, np.uint8)
    ctypes.memmove(address, source.ctypes.data, len(content))
