"""The folder that we keep in a cache's root: locks, marks, the index, and an installation until it is complete.

It is within the root, not beside it: a root may be a mounted volume, and only what is on the same file system can be
moved into place in one step. No kind of cache lets it travel.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelexpress.artifacts.kind import STATE_FOLDER
from modelexpress.errors import ArtifactError

_POLL_SECONDS = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def state_folder(root: Path) -> Path:
    """Return our folder in a cache, made where it is missing, together with the cache's root.

    Raises:
        ArtifactError: It cannot be made, or is not this user's alone.
    """
    folder = Path(os.path.realpath(root), STATE_FOLDER)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise ArtifactError(
            f"nothing can be written into the cache {root}: {error.strerror}; make it writable for this user"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ArtifactError(f"{folder} is no folder that this user alone can write to; remove it")
    return folder


@contextmanager
def locked(file: Path, seconds: float) -> Iterator[bool]:
    """Hold the lock of a file, and say whether it was to be had; the kernel frees it when this process dies.

    Args:
        file: Made where it is missing, and never removed.
        seconds: How long to wait for another process, or another thread.

    Raises:
        ArtifactError: The file cannot be made, or the file system knows no locks.
    """
    try:
        descriptor = _lock(file, time.monotonic() + seconds)
    except OSError as error:
        hint = "its file system knows no locks: use another one" if error.errno in _NO_LOCKS else "make it writable"
        raise ArtifactError(f"{file} cannot be locked: {error.strerror}; {hint}") from error
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Said, not only closed: a process that was forked meanwhile may hold the same open file.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(file: Path, deadline: float) -> int | None:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _take(descriptor) and _is_at(descriptor, file):
                locked_file, descriptor = descriptor, -1
                return locked_file
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Return whether the file that was locked is the one that others will open: somebody may clear the cache."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False
