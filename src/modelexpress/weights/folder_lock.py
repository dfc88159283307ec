"""The lock on a folder, which tells the living from the dead: the kernel drops it when its process ends."""

import errno
import fcntl
import os
from pathlib import Path

_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_folder(path: Path) -> int | None:
    """Open and lock a folder, and return its descriptor, which the caller closes to unlock it.

    A file system without folder locks (NFS) is no error: nobody is kept out there.

    Args:
        path: The folder; not a link to one.

    Returns:
        None: somebody removed or replaced the folder meanwhile. A lock on what is no longer there keeps nobody out.

    Raises:
        BlockingIOError: Somebody else holds the lock.
        OSError: The folder cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor)
        locked = is_at(descriptor, path)
    except BaseException:  # Ctrl-C, too, must leave nothing locked; it is raised again
        os.close(descriptor)
        raise
    if locked:
        return descriptor
    os.close(descriptor)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
