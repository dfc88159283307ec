"""Moving files into a cache so that a death in the middle can be made good.

Everything is first written below the state folder, made durable, and listed in a plan; only then is the first file
moved. Without a plan, what is staged is worth nothing. With one, whoever comes next finishes the moves.
"""

import ctypes
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelexpress.artifacts.checksum import checksum
from modelexpress.artifacts.folders import Folders, is_blocked
from modelexpress.artifacts.sealed import is_sealable
from modelexpress.errors import ArtifactError

_FOLDER = "staging"
_PLAN = "plan.json"
_VERSION = 1
_RENAME_NOREPLACE = 1  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that waits under its number.

    Attributes:
        number: Its name in the staging folder.
        path: Where it belongs, from `/`, the root of the cache.
        sealed: Checksum of what the source sealed.
        checksum: Checksum of what it holds: another one where it was adapted to this host.
    """

    number: int
    path: str
    sealed: str
    checksum: str


class Staging:
    """The unfinished part of an installation. Whoever uses it holds the cache's lock.

    Args:
        state: The state folder of the cache.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / _FOLDER

    @property
    def is_empty(self) -> bool:
        """Whether no installation is unfinished, or under way."""
        return not self._folder.exists()

    def begin(self) -> None:
        """Make the folder, empty.

        Raises:
            OSError: It cannot be made.
        """
        self.clear()
        self._folder.mkdir(mode=0o700)

    def write(self, number: int, content: memoryview | bytes, mode: int, mtime: int | None) -> None:
        """Write a file; `mtime` in nanoseconds since the epoch, now where None.

        Raises:
            OSError: It cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{self._folder}/{number}", flags, mode)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if mtime is not None:
                os.utime(descriptor, ns=(mtime, mtime))
        finally:
            os.close(descriptor)

    def commit(self, artifact_id: str, files: Iterable[StagedFile]) -> None:
        """Make everything durable, then the plan: from here on the installation will be finished.

        Args:
            artifact_id: Of the artifact that is installed.
            files: In the order in which they are to appear.

        Raises:
            OSError: The disk failed.
        """
        moves = [[file.number, file.path, file.sealed, file.checksum] for file in files]
        plan = json.dumps({"version": _VERSION, "artifact_id": artifact_id, "files": moves}).encode()
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Once for thousands of files: a call for each of them takes a hundred times as long.
            if _libc.syncfs(folder):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            unfinished = self._folder / f"{_PLAN}.new"
            with open(unfinished, "xb") as file:
                file.write(plan)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._folder / _PLAN)
            os.fsync(folder)
        finally:
            os.close(folder)

    def planned(self) -> tuple[str, list[StagedFile]]:
        """Return the artifact id and the files of the plan; ("", []) where there is none, or none that can be read."""
        try:
            plan: Any = json.loads((self._folder / _PLAN).read_bytes())
            files = [StagedFile(int(number), *map(str, rest)) for number, *rest in plan["files"]]
            if plan["version"] != _VERSION or not all(is_sealable(file.path) for file in files):
                return "", []
            return str(plan["artifact_id"]), files
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return "", []

    def move(self, root: Path, files: Iterable[StagedFile]) -> list[StagedFile]:
        """Move files into the cache, each in one step; a file that is there already is left as it is.

        Returns:
            The files that were moved, now or by a process that died after it.

        Raises:
            ArtifactError: A link, or something else that is no folder, is on the way to a file.
            OSError: The disk failed.
        """
        moved = []
        source = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with Folders(root) as folders:
                for file in files:
                    try:
                        folder, name = folders.holding(file.path, create=True)
                        if _move(source, str(file.number), folder, name):
                            moved.append(file)
                    except OSError as error:
                        if not is_blocked(error):
                            raise
                        raise ArtifactError(
                            f"{file.path!r:.200} cannot be installed in {root}: a link or a file is in place of one "
                            "of its folders, and nothing is written through it; remove it"
                        ) from error
        finally:
            os.close(source)
        return moved

    def undamaged(self, files: Iterable[StagedFile]) -> bool:
        """Return whether each file that is still staged holds what the plan says."""
        for file in files:
            with suppress(FileNotFoundError):
                if checksum((self._folder / str(file.number)).read_bytes()) != file.checksum:
                    return False
        return True

    def clear(self) -> None:
        """Remove everything that is staged; the plan goes first, so that it never names what is gone.

        Raises:
            OSError: It cannot be removed, or a link is in place of the folder.
        """
        if self._folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "a link is in place of a folder", str(self._folder))
        (self._folder / _PLAN).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)


def mode_of(path: PurePosixPath) -> int:
    """Return the permissions of a file, before the umask: only shared objects can be executed."""
    return 0o755 if ".so" in path.suffixes else 0o644


def _move(source: int, number: str, folder: int, name: str) -> bool:
    """Move a file to a name that is free; return False where it is not. What is no longer staged was moved before."""
    if _libc.renameat2(source, number.encode(), folder, os.fsencode(name), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.ENOENT:
        return True
    if code == errno.EEXIST:
        return _replace_empty(source, number, folder, name)
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), name)
    # A file system without that call (NFS): a link fails where the name is taken, too.
    try:
        os.link(number, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return _replace_empty(source, number, folder, name)
    os.unlink(number, dir_fd=source)
    return True


def _replace_empty(source: int, number: str, folder: int, name: str) -> bool:
    """Put a file that holds something in place of an empty one; return whether that was the case."""
    there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(there.st_mode) or there.st_size or not os.stat(number, dir_fd=source).st_size:
        return False
    os.rename(number, name, src_dir_fd=source, dst_dir_fd=folder)
    return True
