"""Folders and files below a cache's root, reached one step at a time: a link is never followed on the way."""

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from modelexpress.errors import ArtifactInvalid

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WAYS_OUT = frozenset({"", ".", ".."})
_TICK = 20_000_000
"""Nanoseconds that are longer than the step of a file system's clock, one jiffy: 10 ms where it is longest."""
_DEEPEST = 100
"""Folders within folders; a cache has five or so, and each costs an open descriptor while it is walked."""


class Stamp(NamedTuple):
    """What changes when a file does: two equal stamps mean the same content, unless both are very young."""

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    @property
    def is_young(self) -> bool:
        """Whether the file might still change without getting another stamp."""
        return self.ctime + _TICK > time.time_ns()

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """Return the stamp of a file; times are nanoseconds since the epoch."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


def wait_until_old(stamps: Iterable[Stamp], seconds: float) -> None:
    """Wait, no longer than `seconds`, until the last change of any of these files is so long ago."""
    newest = max((stamp.ctime for stamp in stamps), default=0)
    time.sleep(max(min(newest / 1e9 + seconds - time.time(), seconds), 0))


class Folders:
    """Opens folders below a root by descriptor; the chain to the last one stays open for its neighbours.

    Args:
        root: Of the cache. It may itself be a link: whoever set it up chose it.

    Raises:
        OSError: There is no such folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.open(os.path.realpath(root), _FOLDER)
        self._chain: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shorten(0)
        os.close(self._root)

    def holding(self, path: str, *, create: bool = False) -> tuple[int, str]:
        """Return a descriptor of the folder that holds a file, valid until the next call, and the file's name.

        Args:
            path: From `/`, the root of the cache.
            create: Make folders that are missing.

        Raises:
            ArtifactInvalid: The path leads out of the root.
            OSError: A folder is missing, or something that is no folder, such as a link, is in its place.
        """
        *folders, name = parts = path[1:].split("/")
        if not _WAYS_OUT.isdisjoint(parts):
            # Manifests are checked when they are made; here it costs nothing to be sure.
            raise ArtifactInvalid(f"{path!r:.200} leads out of the cache; leave its source out")
        common = 0
        for (known, _), wanted in zip(self._chain, folders, strict=False):
            if known != wanted:
                break
            common += 1
        self._shorten(common)
        for folder in folders[common:]:
            self._chain.append((folder, self._step(folder, create)))
        return self._deepest, name

    def open_file(self, path: str) -> int:
        """Open a file for reading and return its descriptor, which the caller closes.

        Raises:
            OSError: There is none, or a link is in its place or on the way.
        """
        folder, name = self.holding(path)
        try:
            # The time of last access tells whether an engine used an entry; our own reading must not.
            return os.open(name, _FILE | os.O_NOATIME, dir_fd=folder)
        except PermissionError:  # O_NOATIME is for the file's owner
            return os.open(name, _FILE, dir_fd=folder)

    def stat(self, path: str) -> os.stat_result | None:
        """Return what is at a path, a link as itself; None where nothing is.

        Raises:
            OSError: Something that is no folder, such as a link, is on the way; `is_blocked` tells.
        """
        try:
            folder, name = self.holding(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    @property
    def _deepest(self) -> int:
        return self._chain[-1][1] if self._chain else self._root

    def _step(self, folder: str, create: bool) -> int:
        if create:
            with suppress(FileExistsError):
                os.mkdir(folder, dir_fd=self._deepest)
        return os.open(folder, _FOLDER, dir_fd=self._deepest)

    def _shorten(self, length: int) -> None:
        while len(self._chain) > length:
            os.close(self._chain.pop()[1])


def is_blocked(error: OSError) -> bool:
    """Return whether an error means that something that is no folder, such as a link, is in a folder's place."""
    return error.errno in (errno.ENOTDIR, errno.ELOOP)


def regular_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of each regular file below a root; links, devices, sockets and pipes are passed over.

    A folder that vanishes meanwhile yields nothing.

    Raises:
        OSError: The root, or a folder below it, cannot be read.
    """
    descriptor = os.open(os.path.realpath(root), _FOLDER)
    try:
        yield from _walk(descriptor, "", _DEEPEST)
    finally:
        os.close(descriptor)


def _walk(folder: int, path: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError, NotADirectoryError):
                if entry.is_dir(follow_symlinks=False):
                    if depth:
                        yield from _enter(folder, entry.name, f"{path}/{entry.name}", depth - 1)
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield f"{path}/{entry.name}", found


def _enter(parent: int, name: str, path: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    descriptor = os.open(name, _FOLDER, dir_fd=parent)
    try:
        yield from _walk(descriptor, path, depth)
    finally:
        os.close(descriptor)
