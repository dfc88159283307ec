"""Pulling a checkpoint folder from a peer: tensors land in the mapped files themselves."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelexpress.client import Client
from modelexpress.errors import CheckpointError, LoadError, ManifestInvalid, ManifestMismatch, NoSourceFound
from modelexpress.settings import Settings
from modelexpress.transfer.manifest import Manifest, contiguous_strides
from modelexpress.transfer.pieces import Addresses
from modelexpress.weights.checkpoint_writer import DEFAULT_SHARD_BYTES, CheckpointWriter
from modelexpress.weights.fetch import Fetch
from modelexpress.weights.reading import Destinations, ReadFile
from modelexpress.weights.report import Journal, LoadReport, Progress
from modelexpress.weights.side_files import check_side_paths
from modelexpress.weights.stored_tensor import TensorEntry
from modelexpress.wire.records import SourceRef, SourceStatus, TensorSpec


def pull_folder(
    model_name: str,
    out: Path | str,
    *,
    registry: str | None = None,
    source_id: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> LoadReport:
    """Write a complete checkpoint folder of a model that a peer holds.

    The folder appears only when every byte of it is verified and durable.

    Args:
        model_name: As its sources named it.
        out: The folder to create.
        registry: HOST:PORT of the registry; None takes it from the environment.
        source_id: Which of several identities of that name is meant.
        shard_bytes: Bytes of tensors in one file at most.
        overwrite: Replace a folder that is there.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        NoSourceFound: No ready source has that name.
        LoadError: Several identities have that name, the model is split over ranks, or every source failed.
        CheckpointError: `out` is occupied, or the disk is full.
    """
    settings = settings or Settings.read()
    journal = Journal(progress)
    with ExitStack() as stack:
        room = _FolderRoom(Path(out), shard_bytes, overwrite, stack)
        Fetch(
            registry or settings.registry,
            lambda client: find_by_name(client, model_name, source_id),
            f"'{model_name}'",
            room,
            journal,
            settings,
        ).run()
        with journal.stage("write to disk"):
            journal.strategy, journal.tensors = "peer", room.commit()
    return journal.report()


def find_by_name(client: Client, model_name: str, source_id: str | None) -> list[SourceRef]:
    """Return the ready sources of a model that hold all of it.

    Raises:
        LoadError: Several identities have that name, or the model is split over ranks.
        RegistryError: The registry could not be asked.
    """
    refs = client.list_sources(model_name=model_name, status=SourceStatus.READY)
    refs = [ref for ref in refs if source_id in (None, ref.source_id)]
    identities = sorted({ref.source_id for ref in refs})
    if len(identities) > 1:
        raise LoadError(
            f"'{model_name}' is published under {len(identities)} identities ({', '.join(identities)}): "
            "name the one that is meant with --source-id"
        )
    if any(ref.worker_rank for ref in refs) or (refs and _is_split(client, refs[0])):
        raise LoadError(f"'{model_name}' is split over ranks: no single source holds a whole checkpoint")
    return refs


def _is_split(client: Client, ref: SourceRef) -> bool:
    """Return whether an identity is that of several ranks, of which perhaps only the first is ready by now."""
    found = client.get(ref.source_id, ref.worker_id)
    if found is None:
        return False
    _, identity = found
    sizes = (identity.tensor_parallel_size, identity.pipeline_parallel_size, identity.expert_parallel_size)
    return max(sizes) > 1


class _FolderRoom:
    """The files of a checkpoint in the making as room for a source's bytes."""

    def __init__(self, out: Path, shard_bytes: int, overwrite: bool, stack: ExitStack) -> None:
        self._out = out
        self._shard_bytes = shard_bytes
        self._overwrite = overwrite
        self._stack = stack
        self._writer: CheckpointWriter | None = None
        self._entries: list[TensorEntry] = []
        self._staging: dict[str, tuple[TensorSpec, npt.NDArray[np.void]]] = {}

    @property
    def devices(self) -> frozenset[int | None]:
        return frozenset({None})

    @property
    def staged(self) -> frozenset[str]:
        return frozenset(self._staging)

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        specs = _stored(manifest)
        entries = [TensorEntry(spec.name, spec.dtype, spec.shape, spec.nbytes) for spec in specs]
        if self._writer is None:
            self._entries = entries
            self._writer = self._create(manifest, read_file)
        elif self._entries != entries:
            raise ManifestMismatch("another source of the same identity holds other tensors: pull again")
        self._staging = {spec.name: (spec, _buffer(spec)) for spec in specs if not _row_major(spec)}
        addresses = {spec.name: self._address(spec.name) for spec in specs if spec.nbytes}
        return {None: Addresses.of(manifest, addresses)}

    def commit(self) -> int:
        """Finish the files and move the folder into place; return the number of tensors."""
        if self._writer is None:
            raise NoSourceFound("nothing was received")
        for name, (spec, content) in self._staging.items():
            strides = [stride * content.itemsize for stride in spec.strides]
            ordered = np.lib.stride_tricks.as_strided(content, spec.shape, strides)
            self._writer.buffer(name)[:] = np.ascontiguousarray(ordered).tobytes()
        self._writer.commit()
        return len(self._entries)

    def _create(self, manifest: Manifest, read_file: ReadFile) -> CheckpointWriter:
        try:
            check_side_paths(file.path for file in manifest.files)
            files = {file.path: read_file(file) for file in manifest.files}
            writer = CheckpointWriter(
                self._out, self._entries, files, shard_bytes=self._shard_bytes, overwrite=self._overwrite
            )
        except CheckpointError as error:
            # Another source may be better: this is about what the source holds, not about the disk.
            raise ManifestInvalid(f"the source holds what no checkpoint folder can: {error}") from error
        return self._stack.enter_context(writer)

    def _address(self, name: str) -> int:
        if name in self._staging:
            return int(self._staging[name][1].ctypes.data)
        assert self._writer is not None
        return self._writer.address(name)


def _stored(manifest: Manifest) -> list[TensorSpec]:
    """Return what belongs into a checkpoint: tied tensors under their first name, no transient buffers."""
    first: dict[object, TensorSpec] = {}
    for spec in manifest.tensors:
        if spec.persistent:
            place = (spec.region, spec.offset, spec.shape, spec.strides, spec.dtype)
            first.setdefault(place if spec.nbytes else spec.name, spec)
    return list(first.values())


def _row_major(spec: TensorSpec) -> bool:
    steps = zip(spec.shape, spec.strides, contiguous_strides(spec.shape), strict=True)
    return not spec.nbytes or all(size == 1 or own == other for size, own, other in steps)


def _buffer(spec: TensorSpec) -> npt.NDArray[np.void]:
    elements = int(np.prod(spec.shape))
    return np.zeros(elements, f"V{spec.nbytes // elements}")
