"""A cache at one moment, in memory that other processes can map, and sealed."""

import os
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from modelexpress.artifacts.checksum import checksums
from modelexpress.artifacts.folders import Folders, Stamp, regular_files, wait_until_old
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.sealed import MAX_CHUNK_BYTES, SealedChunk, SealedFile, SealedManifest, is_sealable
from modelexpress.errors import ArtifactError, CacheBusy, ConfigurationError
from modelexpress.memory.arena import HostArena, aligned

_QUIET_SECONDS = 0.25
"""Nothing may have changed for so long. It is more than the step of any file system's clock, so that a later change
gives a file another stamp, and more than a writer takes from emptying a file to filling it."""
_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before each reading of what changed during the one before."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The files of a cache, side by side in one arena. Closing it, or leaving its block, gives the memory back.

    Attributes:
        manifest: What the arena holds.
        arena: The bytes of every file.
        offsets: Where each file begins in the arena, in the order of the manifest.
        mtimes: When each file was last changed, nanoseconds since the epoch. Not sealed: build tools look at them.
    """

    manifest: SealedManifest
    arena: HostArena
    offsets: Sequence[int]
    mtimes: Sequence[int]

    def content(self, index: int) -> memoryview:
        """Return the bytes of a file."""
        offset = self.offsets[index]
        return memoryview(self.arena)[offset : offset + self.manifest.files[index].size]

    def close(self) -> None:
        """Give the memory back; readers that mapped it keep theirs."""
        self.arena.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Content(NamedTuple):
    """What a file held when its stamp was this."""

    stamp: Stamp
    view: memoryview
    checksum: str
    chunks: list[str]


def take_snapshot(kind: Kind, root: Path, chunk_size: int) -> Snapshot:
    """Read every file of a cache that belongs to it, and seal the manifest.

    What is in the snapshot was in the cache at one moment: when a file came, went or changed meanwhile, what differs
    is read again. Links, devices, sockets and pipes are left out, and so are names that no manifest can carry.

    Args:
        kind: Of the cache; says which files belong.
        root: Of the cache.
        chunk_size: Bytes of a file that have a checksum of their own.

    Raises:
        CacheBusy: The cache kept changing.
        ArtifactInvalid: It has more files or bytes than a manifest may list.
        ArtifactError: It cannot be read.
        ConfigurationError: The chunk size is none, or there is no memory for the cache.
    """
    if not 0 < chunk_size <= MAX_CHUNK_BYTES:
        raise ConfigurationError(f"chunks of {chunk_size} bytes cannot be sealed; 1 to {MAX_CHUNK_BYTES} are allowed")
    try:
        stamps = _stamps(kind, root)
        held: dict[str, _Content] = {}
        for pause in _PAUSES:
            time.sleep(pause)
            arena = HostArena(sum(aligned(stamp.size) for stamp in stamps.values()), f"modelexpress-{kind.name}")
            held = _read(root, stamps, arena, chunk_size, held)
            now = _stamps(kind, root, held)
            if now == stamps and len(held) == len(stamps):
                return _sealed(kind, arena, chunk_size, held)
            stamps = now
    except OSError as error:
        raise ArtifactError(
            f"the {kind.name} cache in {root} cannot be read: {error}; make it readable for this user"
        ) from error
    raise CacheBusy(
        f"the {kind.name} cache in {root} changed each of the {len(_PAUSES)} times that it was read; "
        "seal it when its engine has stopped compiling"
    )


def _stamps(kind: Kind, root: Path, known: Container[str] = ()) -> dict[str, Stamp]:
    """Return the files that travel, sorted by path; `known` are some that do."""
    found = {
        path: Stamp.of(status)
        for path, status in regular_files(root)
        if path in known or (is_sealable(path) and kind.belongs(PurePosixPath(path[1:])))
    }
    return dict(sorted(found.items()))


def _read(
    root: Path, stamps: dict[str, Stamp], arena: HostArena, chunk_size: int, held: dict[str, _Content]
) -> dict[str, _Content]:
    """Fill an arena, with what is held already or from the files; what cannot be read just now is left out."""
    wait_until_old(stamps.values(), _QUIET_SECONDS)
    contents: dict[str, _Content] = {}
    with Folders(root) as folders:
        for path, stamp in stamps.items():
            view = arena.take(stamp.size)
            before = held.get(path)
            if before is not None and before.stamp == stamp:
                view[:] = before.view
                contents[path] = before._replace(view=view)
            elif _fill(folders, path, view):
                contents[path] = _Content(stamp, view, *checksums(view, chunk_size))
    return contents


def _fill(folders: Folders, path: str, view: memoryview) -> bool:
    """Read a file; return whether it was there with so many bytes."""
    try:
        descriptor = folders.open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        read = 0
        while read < len(view):
            count = os.readv(descriptor, [view[read:]])
            if count == 0:
                return False
            read += count
    except BlockingIOError:  # a pipe has taken its place
        return False
    finally:
        os.close(descriptor)
    return True


def _sealed(kind: Kind, arena: HostArena, chunk_size: int, contents: dict[str, _Content]) -> Snapshot:
    files: list[SealedFile] = []
    chunks: list[SealedChunk] = []
    offsets: list[int] = []
    end = 0
    for index, (path, content) in enumerate(contents.items()):
        size = content.stamp.size
        files.append(SealedFile(index, path, size, content.checksum))
        for number, checksum in enumerate(content.chunks):
            begin = number * chunk_size
            chunks.append(SealedChunk(len(chunks), index, begin, min(chunk_size, size - begin), checksum))
        offsets.append(end)
        end += aligned(size)
    manifest = SealedManifest(kind.source_type, chunk_size, tuple(files), tuple(chunks))
    return Snapshot(manifest, arena, tuple(offsets), tuple(content.stamp.mtime for content in contents.values()))
