"""Usage: how many installed files the engine has read since they were installed.

Each file has a time of last access that is not after its last change; installing it sees to that. Linux then renews it
at the first read, also on mounts with `relatime` (mount(2), MS_RELATIME). What is mounted with `noatime` never renews
it; there a watch of inotify(7) tells what is opened.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelexpress.artifacts.watching import OpenWatch

_BEFORE_NS = 1_000_000_000
"""How far before the last change of a file its last access is set: more than any file system rounds to."""


@dataclass(frozen=True)
class Usage:
    """How many of some installed files were read.

    Args:
        installed: Files that are watched.
        used: Those that were read; None where this host does not tell.
        how: What told it, or why nothing does.
    """

    installed: int
    used: int | None
    how: str

    @property
    def in_vain(self) -> bool:
        """Whether files were installed and nobody has read one."""
        return self.installed > 0 and self.used == 0

    def __str__(self) -> str:
        if self.used is None:
            return f"{self.installed} installed files, unknown how many were used: {self.how}"
        return f"{self.used} of {self.installed} installed files were used ({self.how})"


class Watch(Protocol):
    """Some installed files, from now on."""

    def usage(self) -> Usage:
        """Return how many were read since. What this process itself reads counts, too: ask before."""

    def close(self) -> None:
        """Stop watching. Closing twice is allowed."""


def watch(root: Path, files: Sequence[str], *, by_other: bool = False) -> Watch:
    """Watch files of a cache; nothing of them is read.

    Args:
        root: Of the cache; it exists.
        files: Paths below it.
        by_other: Another process has installed them, and a third one may have used them since.
    """
    if _renews_access_times(root):
        return _AccessTimes(root, files, _changed if by_other else _mark)
    try:
        return _Opened(root, files)
    except OSError as error:
        return _Unknown(len(files), f"access times are not kept here, and nothing can be watched: {error}")


class _AccessTimes:
    """Files whose time of last access is not after their last change, until somebody reads them."""

    def __init__(self, root: Path, files: Sequence[str], unread: Callable[[Path], int | None]) -> None:
        self._marked = {path: atime for path in files if (atime := unread(root / path)) is not None}
        self._root = root

    def usage(self) -> Usage:
        used = sum(_access_time(self._root / path) > atime for path, atime in self._marked.items())
        return Usage(len(self._marked), used, "by their access times")

    def close(self) -> None:
        self._marked = {}


class _Opened:
    """Files of which the kernel tells when they are opened."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._count = len(files)
        self._watch = OpenWatch(root, files)

    def usage(self) -> Usage:
        opened, complete = self._watch.opened()
        return Usage(self._count, opened, "by what was opened" if complete else "by what was opened, at least")

    def close(self) -> None:
        self._watch.close()


@dataclass
class _Unknown:
    """Files of which nobody tells anything."""

    count: int
    why: str

    def usage(self) -> Usage:
        return Usage(self.count, None, self.why)

    def close(self) -> None:
        self.count = 0


def _renews_access_times(root: Path) -> bool:
    """Return whether reading a file below `root` renews its time of last access, by trying."""
    probe = root / f".mx-access-{secrets.token_hex(8)}"
    try:
        probe.write_bytes(b"?")
        marked = _mark(probe)
        probe.read_bytes()
        return marked is not None and _access_time(probe) > marked
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _mark(path: Path) -> int | None:
    """See to it that a file's last access is not after its last change; return it, None where that failed."""
    try:
        found = os.stat(path, follow_symlinks=False)
        changed = found.st_mtime_ns
        if found.st_atime_ns <= changed:
            return found.st_atime_ns
        os.utime(path, ns=(changed - _BEFORE_NS, changed), follow_symlinks=False)
        return os.stat(path, follow_symlinks=False).st_atime_ns
    except OSError:
        return None


def _changed(path: Path) -> int | None:
    """Return a file's last change, which nothing but a read makes its last access later than; None where it is gone."""
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None


def _access_time(path: Path) -> int:
    """Return a file's time of last access; -1 where it is gone, which is no use of it."""
    try:
        return os.stat(path, follow_symlinks=False).st_atime_ns
    except OSError:
        return -1


def total(usages: Iterable[Usage]) -> Usage:
    """Return several usages as one; unknown where one is."""
    every = list(usages)
    counts = [usage.used for usage in every if usage.used is not None]
    return Usage(
        sum(usage.installed for usage in every),
        sum(counts) if len(counts) == len(every) else None,
        ", ".join(sorted({usage.how for usage in every})),
    )
