"""Watching which files are opened, by any process of this host: inotify(7), which Python does not wrap."""

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

_EVENT = struct.Struct("iIII")  # struct inotify_event of sys/inotify.h, before the name
_OPENED = 0x00000020  # IN_OPEN
_OVERFLOW = 0x00004000  # IN_Q_OVERFLOW
_ONLY_FOLDERS = 0x01000000  # IN_ONLYDIR
_ROOM = 1 << 16


class OpenWatch:
    """Files below a folder, each remembered once it was opened; nothing runs until it is asked.

    The kernel queues what happens (fs.inotify.max_queued_events), so what is told is complete only up to that length.

    Args:
        root: The folder.
        files: Paths below it.

    Raises:
        OSError: The kernel has no more watches (fs.inotify.max_user_watches), or a folder is gone.
    """

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._files = frozenset(files)
        self._opened: set[str] = set()
        self._complete = True
        self._folders: dict[int, str] = {}
        self._descriptor = self._c.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise _last_error("inotify")
        for folder in {os.path.dirname(path) for path in files}:
            self._add(root, folder)

    def opened(self) -> tuple[int, bool]:
        """Return how many files were opened so far, and whether that is all of them."""
        for number, mask, name in self._events():
            if mask & _OVERFLOW:
                self._complete = False
            elif (path := os.path.join(self._folders.get(number, ""), name)) in self._files:
                self._opened.add(path)
        return len(self._opened), self._complete

    def close(self) -> None:
        """Stop watching. Closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, root: Path, folder: str) -> None:
        path = os.fsencode(root / folder)
        number = self._c.inotify_add_watch(self._descriptor, path, _OPENED | _ONLY_FOLDERS)
        if number < 0:
            error = _last_error(os.fsdecode(path))
            self.close()
            raise error
        self._folders[number] = folder

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, _ROOM)
            except BlockingIOError:
                return
            start = 0
            while start < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, start)
                start += _EVENT.size
                yield number, mask, os.fsdecode(data[start : start + length].rstrip(b"\0"))
                start += length


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
