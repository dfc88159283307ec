"""What a cache already holds of an artifact."""

import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.checksum import file_checksum
from modelexpress.artifacts.folders import Folders, Stamp, is_blocked
from modelexpress.artifacts.index import Index
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.sealed import SealedFile, SealedManifest
from modelexpress.artifacts.state import state_folder
from modelexpress.errors import ArtifactError

_INDEX = "index.json"
_BUFFER_BYTES = 1 << 20
_TICK_SECONDS = 0.021


@dataclass(frozen=True)
class Comparison:
    """The files of an artifact, by what is in their place.

    Attributes:
        missing: Nothing is there, or an empty file, which is what a crash of the machine leaves.
        present: The same content.
        different: Something else; it is kept.
        foreign: Files that this kind of cache has no use for; they are never installed.
    """

    missing: tuple[SealedFile, ...]
    present: tuple[SealedFile, ...]
    different: tuple[SealedFile, ...]
    foreign: tuple[SealedFile, ...]


def compare(kind: Kind, manifest: SealedManifest, root: Path) -> Comparison:
    """Return what a cache holds of an artifact. Files are read only where the index cannot vouch for them.

    Raises:
        ArtifactError: The cache cannot be read.
    """
    belong: list[SealedFile] = []
    foreign: list[SealedFile] = []
    for file in manifest.files:
        (belong if kind.belongs(PurePosixPath(file.path[1:])) else foreign).append(file)
    if not root.is_dir():
        return Comparison(tuple(belong), (), (), tuple(foreign))
    try:
        return _Comparing(root).run(belong, foreign)
    except OSError as error:
        raise ArtifactError(f"the cache {root} cannot be read: {error}; make it readable for this user") from error


def remember(root: Path, files: Iterable[tuple[SealedFile, int]]) -> None:
    """Note the checksums of files that were just installed, so that nobody has to read them again.

    Args:
        root: Of the cache.
        files: Each with the bytes that it has here: another number where it was adapted to this host.
    """
    # What is written within a tick of the clock cannot be told from what is written right after.
    time.sleep(_TICK_SECONDS)
    index = _index(root)
    with suppress(OSError), Folders(root) as folders:
        for file, size in files:
            found = folders.stat(file.path)
            if found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size:
                index.put(file.path, Stamp.of(found), file.checksum)
    index.save()


class _Comparing:
    """One pass over the files of an artifact."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._index = _index(root)
        self._buffer = bytearray(_BUFFER_BYTES)

    def run(self, belong: Iterable[SealedFile], foreign: Iterable[SealedFile]) -> Comparison:
        missing: list[SealedFile] = []
        present: list[SealedFile] = []
        different: list[SealedFile] = []
        with Folders(self._root) as folders:
            for file in belong:
                try:
                    here = self._checksum(folders, file)
                except FileNotFoundError:
                    here = None
                (missing if here is None else present if here == file.checksum else different).append(file)
        self._index.save()
        return Comparison(tuple(missing), tuple(present), tuple(different), tuple(foreign))

    def _checksum(self, folders: Folders, file: SealedFile) -> str | None:
        """Return the checksum of what is in a file's place, "" where that cannot be the file; None: it is free."""
        try:
            found = folders.stat(file.path)
        except OSError as error:
            if is_blocked(error):
                return ""
            raise
        if found is None or (stat.S_ISREG(found.st_mode) and not found.st_size and file.size):
            return None
        stamp = Stamp.of(found)
        if known := self._index.checksum(file.path, stamp):
            return known
        if not stat.S_ISREG(found.st_mode) or stamp.size != file.size:
            return ""
        descriptor = folders.open_file(file.path)
        try:
            checksum = file_checksum(descriptor, self._buffer)
        finally:
            os.close(descriptor)
        self._index.put(file.path, stamp, checksum)
        return checksum


def _index(root: Path) -> Index:
    try:
        return Index(state_folder(root) / _INDEX)
    except ArtifactError:  # a cache that can only be read: every file is, then
        return Index(None)
