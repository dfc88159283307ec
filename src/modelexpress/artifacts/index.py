"""What was found out about the files of a cache, so that they need not be read again while they stay as they are."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelexpress.artifacts.folders import Stamp
from modelexpress.artifacts.sealed import MAX_FILES

_VERSION = 1
_LARGEST = 256 << 20  # bytes


class Index:
    """Checksums by path and stamp. A stamp that differs from the file's is never believed.

    It is a convenience: what is damaged, of another version or cannot be written is done without.

    Args:
        file: Where it is kept; None: nowhere.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries = _read(file) if file is not None else {}
        self._changed = False

    def checksum(self, path: str, stamp: Stamp) -> str | None:
        """Return the checksum of a file that still has that stamp; None where it must be read."""
        known = self._entries.get(path)
        if not isinstance(known, list) or known[:-1] != list(stamp) or not isinstance(known[-1], str):
            return None
        return known[-1]

    def put(self, path: str, stamp: Stamp, checksum: str) -> None:
        """Remember the checksum of a file that had this stamp before it was read, unless it is too young for that."""
        if not stamp.is_young:
            self._entries[path] = [*stamp, checksum]
            self._changed = True

    def save(self) -> None:
        """Write what is new, for the next process."""
        if self._file is None or not self._changed:
            return
        while len(self._entries) > 2 * MAX_FILES:
            del self._entries[next(iter(self._entries))]
        unfinished = self._file.with_name(f"{self._file.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):
            unfinished.write_text(json.dumps({"version": _VERSION, "files": self._entries}, separators=(",", ":")))
            os.replace(unfinished, self._file)
        with suppress(OSError):
            unfinished.unlink()


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            return {}
        value: Any = json.loads(file.read_bytes())
        files = value["files"] if value["version"] == _VERSION else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return files if isinstance(files, dict) else {}
