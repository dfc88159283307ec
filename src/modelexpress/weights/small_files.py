"""Reading the small files of a checkpoint folder, which a stranger may have written."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelexpress.errors import CheckpointError

JSON_FILE_LIMIT = 256 * 2**20  # bytes; far above the index of a model with a hundred thousand tensors


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor, which the caller closes.

    Raises:
        CheckpointError: The file is missing, unreadable, or no regular file.
    """
    try:
        # Without O_NONBLOCK a named pipe in the folder would hold the open until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}; restore the file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file; replace it by the file itself")
    return descriptor


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: The file cannot be read, is larger than `JSON_FILE_LIMIT`, or holds no JSON object.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(JSON_FILE_LIMIT + 1)
    if len(data) > JSON_FILE_LIMIT:
        raise CheckpointError(f"{path} is larger than {JSON_FILE_LIMIT} bytes; it is no configuration file")
    return parse_json_object(data, path)


def parse_json_object(data: bytes, file: Path) -> dict[str, Any]:
    """Return `data`, the content of `file` or of its header, as a JSON object without repeated keys.

    Raises:
        CheckpointError: The bytes are no UTF-8, no JSON, no object, or an object repeats a key.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"its JSON cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise damaged(file, "its JSON is no object")
    return value


def damaged(file: Path, reason: str) -> CheckpointError:
    """Return the error for a file whose content contradicts its format."""
    return CheckpointError(f"{file} is damaged or incomplete: {reason}; fetch it again")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return the first `limit` names for a message, each cut to 200 characters, and count the rest."""
    ordered = sorted(names)
    shown = ", ".join(f"{name!r:.200}" for name in ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) < len(pairs):
        # Readers differ in which of two equal keys wins: two of them would see different tensors.
        raise ValueError("an object repeats a key")
    return merged
