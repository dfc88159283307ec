"""A folder that appears complete or not at all: filled under a hidden name, then renamed into place.

A lock on the hidden folder itself tells the living from the dead. The kernel drops it when its process ends,
however it ends, and it holds between containers that share a volume, where process ids mean nothing.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Self

from modelexpress.errors import CheckpointError
from modelexpress.weights.folder_lock import is_at, lock_folder

PREFIX = ".mx-partial-"

_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h: swap two paths in one step


class StagingFolder:
    """A hidden sibling of `out` that takes its place on `publish`, and is gone after the `with` block if not.

    Args:
        out: The folder to create, with its missing parents.
        overwrite: Replace a folder that is there, instead of refusing.

    Attributes:
        path: The hidden folder, on the file system of `out`.

    Raises:
        CheckpointError: On entering or on `publish`: `out` is occupied or cannot be created there.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        # A link to a folder is replaced at its end, else the rename would put a folder over the link.
        self._out = Path(os.path.realpath(out))
        self._overwrite = overwrite
        self._new_parents: list[Path] = []
        self._lock = -1
        self.path = self._hidden_path()

    def __enter__(self) -> Self:
        try:
            self.check()
            self._create_parents()
            remove_abandoned(self._out.parent)
            while not self._create():
                self.path = self._hidden_path()
        except OSError as error:
            self._clean()
            raise CheckpointError(
                f"cannot create a folder in {self._out.parent}: {error.strerror}; choose another place"
            ) from error
        except BaseException:  # Ctrl-C, too, must leave no folder behind; it is raised again
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()

    def publish(self) -> Path:
        """Make the content durable, move it to `out`, and return the path of `out`.

        After it returns, a crash of the machine leaves the complete folder. A folder that was replaced is
        removed when the `with` block ends.

        Raises:
            CheckpointError: `out` has been occupied meanwhile, or the disk failed.
        """
        try:
            self.check()
            for parent, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    _synchronise(Path(parent, name))
                _synchronise(Path(parent))
            if self._overwrite and self._out.exists():
                _exchange(self.path, self._out)
            else:
                self.path.rename(self._out)
            _synchronise(self._out.parent)
        except OSError as error:
            raise CheckpointError(f"cannot complete {self._out}: {error.strerror}; try again") from error
        return self._out

    def check(self) -> None:
        """Check that `out` can be published to, as entering and `publish` do.

        Raises:
            CheckpointError: It is a file, a mount point, or occupied.
        """
        if not self._out.exists():
            return
        if not self._out.is_dir():
            raise CheckpointError(f"{self._out} is a file; name a folder")
        if os.path.ismount(self._out):
            raise CheckpointError(
                f"{self._out} is a mount point, which no folder can be renamed to; name a folder below it"
            )
        if not self._overwrite and any(self._out.iterdir()):
            raise CheckpointError(f"{self._out} is not empty; name another folder, or ask to overwrite it")

    def _create_parents(self) -> None:
        missing = [parent for parent in self._out.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._new_parents.append(parent)

    def _hidden_path(self) -> Path:
        return self._out.parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"

    def _create(self) -> bool:
        """Create and lock the hidden folder; return False if another process took it for an abandoned one."""
        self.path.mkdir()
        try:
            # Where no folder can be locked (NFS) it is safe all the same, as nobody else gets the lock either. It is
            # only not tidied up after a crash.
            lock = lock_folder(self.path)
        except BlockingIOError:
            return False
        if lock is None:
            return False
        self._lock = lock
        return True

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _clean(self) -> None:
        # The hidden path holds the unfinished folder, or the one that was replaced, or nothing.
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()
        for parent in reversed(self._new_parents):
            with suppress(OSError):  # not empty: the result, or somebody else's file, is in it
                parent.rmdir()


def remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders in `parent` that this user's dead processes left, and no living one's."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # not ours, in use, or removed by somebody else at this moment
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been renamed into place since it was listed; then nothing, or another folder, is here.
        if os.fstat(descriptor).st_uid == os.geteuid() and is_at(descriptor, path):
            shutil.rmtree(path)
    finally:
        os.close(descriptor)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders atomically, or in two steps where the file system cannot (NFS)."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(_AT_FDCWD, bytes(new), _AT_FDCWD, bytes(old), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code))
    # Not under `PREFIX`: should this process die here, nobody must take the only copy for abandoned.
    aside = old.with_name(f".{old.name}-replaced")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)
