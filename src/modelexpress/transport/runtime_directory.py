"""The private folder of this user's sockets, and what dead processes left in it."""

import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

from modelexpress.errors import TransportUnavailable

MAX_PATH_BYTES = 107
"""sun_path of a Unix socket has 108 bytes, of which the last is zero: unix(7)."""
_SUFFIX = ".sock"
_BACKLOG = 128
_LAST_RESORT = "/tmp"  # its name is short, where others are too long


def listen_privately() -> tuple[socket.socket, Path]:
    """Return a listening Unix socket that only this user can reach, and its path.

    Raises:
        TransportUnavailable: There is no folder for it.
    """
    try:
        directory = _directory()
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        _sweep(directory)
        return _bind(path), path
    except OSError as error:
        raise TransportUnavailable(f"no Unix socket can be made: {error}") from error


def _directory() -> Path:
    """Return the folder, made where it is missing; the first base that fits into a socket's address is taken."""
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), _LAST_RESORT]
    problems = []
    for base in filter(None, bases):
        directory = Path(base) / f"modelexpress-{os.getuid()}"
        longest = f"{directory}/{1 << 22}-{'0' * 8}{_SUFFIX}.new"
        if len(os.fsencode(longest)) > MAX_PATH_BYTES:
            problems.append(f"{directory} is too long for a socket's address")
            continue
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
        except OSError as error:
            problems.append(str(error))
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return directory
        problems.append(f"{directory} is not a folder that belongs to this user alone")
    raise OSError("; ".join(problems))


def _bind(path: Path) -> socket.socket:
    """Listen at `path`; the name appears only when connections are accepted, so that no sweep takes it for dead."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unfinished = f"{path}.new"
    try:
        sock.bind(unfinished)
        os.chmod(unfinished, 0o600)
        sock.listen(_BACKLOG)
        os.rename(unfinished, path)
    except OSError:
        sock.close()
        raise
    return sock


def _sweep(directory: Path) -> None:
    """Remove the sockets of processes that died: nobody listens on them any more."""
    for path in directory.glob(f"*{_SUFFIX}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                # Busy, or gone in the meantime: its owner looks after it.
                continue
