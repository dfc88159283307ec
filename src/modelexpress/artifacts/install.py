"""Puts files of an artifact into a cache: each whole or not at all, and in the end all of them.

A file that is there is never overwritten. Entries of these caches are named after what decided them, so that another
file of the same name is another result of the same question, and an engine may be using it; it is kept, and counted.
Only an empty file gives way: that is what a crash of the machine leaves, and no entry is.

When a process dies before it has begun to move files, the cache is as it was. When it dies later, the next
installation of the same artifact finishes the moves first, and that of another one leaves the files that were moved:
each is whole, and those that refer to others come after them.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.checksum import checksum
from modelexpress.artifacts.compare import compare, remember
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.sealed import SealedChunk, SealedFile, SealedManifest
from modelexpress.artifacts.signing import Verdict
from modelexpress.artifacts.staging import StagedFile, Staging, mode_of
from modelexpress.artifacts.state import locked, state_folder
from modelexpress.errors import ArtifactError, ArtifactInvalid, CacheBusy

logger = logging.getLogger(__name__)

_LOCK = "install.lock"
_PATIENCE = 300.0
"""Seconds to wait for another process that installs into the same cache."""


@dataclass(frozen=True)
class Installed:
    """What an installation did.

    Attributes:
        written: Files that are new in the cache.
        present: Files that were there already, with the same content.
        kept: Files in whose place something else was, which was left as it is.
        foreign: Files of the artifact that this kind of cache has no use for.
    """

    written: tuple[SealedFile, ...]
    present: tuple[SealedFile, ...]
    kept: tuple[SealedFile, ...]
    foreign: tuple[SealedFile, ...] = ()


def missing(kind: Kind, manifest: SealedManifest, root: Path) -> tuple[SealedFile, ...]:
    """Return the files of an artifact that `install` would write below `root`: those that a target must fetch.

    A file with another content is none of them: it would be kept. What an installation of this artifact has left
    unfinished is finished first.

    Raises:
        ArtifactInvalid: The manifest is of another kind.
        ArtifactError: The cache cannot be read.
    """
    _check_type(kind, manifest)
    if root.is_dir():
        _finish_if_free(root, manifest.artifact_id)
    compared = compare(kind, manifest, root)
    if compared.different:
        logger.info(
            "%d files of the %s cache differ from the source's and are kept, such as %s",
            len(compared.different),
            kind.name,
            compared.different[0].path,
        )
    return compared.missing


def install(
    kind: Kind,
    manifest: SealedManifest,
    root: Path,
    contents: Mapping[int, memoryview],
    *,
    verdict: Verdict | None = None,
    mtimes: Mapping[int, int] | None = None,
    patience: float = _PATIENCE,
) -> Installed:
    """Verify files and put them into the cache.

    Nothing is written outside `root`: links below it are not followed, and what is behind one counts as kept.

    Args:
        kind: Of the cache.
        manifest: What the source sealed.
        root: The cache's root; made where it is missing.
        contents: The bytes of each missing file, by its index. They must not change meanwhile.
        verdict: What `verify` said. CRC32C finds damage, not malice: only the digests that a trusted key signed,
            which the verdict carries, bind a signature to these bytes. Always hand it over.
        mtimes: Modification times to give the files, nanoseconds since the epoch, by index; now where there is none.
        patience: Seconds to wait for other installations into this cache.

    Raises:
        ArtifactInvalid: The manifest is of another kind, a chunk does not match its checksum, or a file the digest
            that was signed.
        CacheBusy: Another process kept installing into this cache.
        ArtifactError: A file is missing from `contents`, a link was put in the way, or the disk failed.
    """
    _check_type(kind, manifest)
    _verify(manifest, contents, verdict.digests if verdict else ())
    state = state_folder(root)
    with locked(state / _LOCK, patience) as free:
        if not free:
            raise CacheBusy(f"another process has been installing into {root} for {patience:.0f} s; try again later")
        try:
            _finish(Staging(state), root, manifest.artifact_id)
            return _Installation(kind, manifest, root, Staging(state)).run(contents, mtimes or {})
        except OSError as error:
            raise ArtifactError(f"nothing more can be installed in {root}: {error}; free space there") from error


class _Installation:
    """One installation, under the cache's lock."""

    def __init__(self, kind: Kind, manifest: SealedManifest, root: Path, staging: Staging) -> None:
        self._kind = kind
        self._manifest = manifest
        self._root = root
        self._staging = staging
        self._sizes: dict[int, int] = {}

    def run(self, contents: Mapping[int, memoryview], mtimes: Mapping[int, int]) -> Installed:
        compared = compare(self._kind, self._manifest, self._root)
        if lacking := [file.path for file in compared.missing if file.index not in contents]:
            raise ArtifactError(f"{len(lacking)} files have not been fetched, such as {lacking[0]!r:.200}; try again")
        written: set[int] = set()
        if compared.missing:
            written = self._write(compared.missing, contents, mtimes)
        return Installed(
            written=tuple(file for file in compared.missing if file.index in written),
            present=compared.present,
            kept=(*compared.different, *(file for file in compared.missing if file.index not in written)),
            foreign=compared.foreign,
        )

    def _write(
        self, files: Sequence[SealedFile], contents: Mapping[int, memoryview], mtimes: Mapping[int, int]
    ) -> set[int]:
        """Stage files and move them; return the indexes of those that found their places free."""
        ordered = sorted(files, key=lambda file: self._kind.comes_last(PurePosixPath(file.path[1:])))
        try:
            self._staging.begin()
            staged = [self._stage(file, contents[file.index], mtimes.get(file.index)) for file in ordered]
            self._staging.commit(self._manifest.artifact_id, staged)
        except OSError:
            self._staging.clear()
            raise
        moved = {file.number for file in self._staging.move(self._root, staged)}
        self._staging.clear()
        remember(self._root, [(file, self._sizes[file.index]) for file in files if file.index in moved])
        return moved

    def _stage(self, file: SealedFile, content: memoryview, mtime: int | None) -> StagedFile:
        path = PurePosixPath(file.path[1:])
        local = self._kind.localised(path, content, self._root)
        here = content if local is None else local
        self._staging.write(file.index, here, mode_of(path), mtime)
        self._sizes[file.index] = len(here)
        held = file.checksum if local is None else checksum(local)
        return StagedFile(file.index, file.path, file.checksum, held)


def _check_type(kind: Kind, manifest: SealedManifest) -> None:
    if manifest.source_type is not kind.source_type:
        raise ArtifactInvalid(f"the source sealed a {manifest.source_type.name}, not a cache of {kind.name}")


def _verify(manifest: SealedManifest, contents: Mapping[int, memoryview], digests: Sequence[bytes]) -> None:
    """Check every chunk that came, and every file as a whole."""
    chunks: dict[int, list[SealedChunk]] = {index: [] for index in contents}
    for chunk in manifest.chunks:
        if chunk.file_index in chunks:
            chunks[chunk.file_index].append(chunk)
    for index, content in contents.items():
        if not 0 <= index < len(manifest.files):
            raise ArtifactInvalid(f"file {index} is not in the manifest, which lists {len(manifest.files)} files")
        _verify_file(manifest.files[index], chunks[index], content)
        if digests and hashlib.sha256(content).digest() != digests[index]:
            raise ArtifactInvalid(
                f"{manifest.files[index].path!r:.200} is not what was signed, though its checksum fits: it was "
                "forged; find out who offers it"
            )


def _verify_file(file: SealedFile, chunks: Sequence[SealedChunk], content: memoryview) -> None:
    if len(content) != file.size:
        raise ArtifactInvalid(f"{file.path!r:.200} came with {len(content)} bytes and was sealed with {file.size}")
    for chunk in chunks:
        if checksum(content[chunk.offset : chunk.offset + chunk.length]) != chunk.checksum:
            raise ArtifactInvalid(
                f"chunk {chunk.index} of {file.path!r:.200} does not match its checksum; fetch it again, from another "
                "source if need be"
            )
    if len(chunks) > 1 and checksum(content) != file.checksum:
        raise ArtifactInvalid(f"{file.path!r:.200} does not match its checksum; leave this source out")


def _finish_if_free(root: Path, artifact_id: str) -> None:
    """Finish what a dead process has left, unless somebody is at work."""
    try:
        state = state_folder(root)
        if Staging(state).is_empty:
            return
        with locked(state / _LOCK, 0) as free:
            if free:
                _finish(Staging(state), root, artifact_id)
    except (ArtifactError, OSError) as error:
        logger.info("what an earlier installation left in %s stays as it is: %s", root, error)


def _finish(staging: Staging, root: Path, artifact_id: str) -> None:
    """Finish an installation of the same artifact that was interrupted while it moved files; else forget it.

    Another artifact's is not finished: nobody vouches for it at this moment.
    """
    if staging.is_empty:
        return
    planned, files = staging.planned()
    if planned == artifact_id and staging.undamaged(files):
        moved = staging.move(root, files)
        logger.info("finished an installation of %d files in %s that had been interrupted", len(moved), root)
    staging.clear()
