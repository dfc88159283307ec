"""The files next to the tensors that make a folder loadable: configuration, tokenizer, templates."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from modelexpress.errors import CheckpointError
from modelexpress.weights.small_files import listed, open_regular

# No Python files: a checkpoint that travels between machines must not bring code along.
_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_INDEX_SUFFIX = ".index.json"  # an index describes files of this folder only; the receiver writes its own
_SIZE_LIMIT = 256 * 2**20  # bytes of one file; the largest vocabularies take some 35 MB
_COUNT_LIMIT = 1000


def list_side_files(folder: Path) -> tuple[Path, ...]:
    """Return the side files of a checkpoint folder, sorted, relative to it; hidden files are left out.

    Raises:
        CheckpointError: There are too many of them, or one is too large to be a side file.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if _is_side_file(path.relative_to(folder)) and path.is_file():
                found.append(path.relative_to(folder))
                _check_size(path, path.stat().st_size)
        if len(found) > _COUNT_LIMIT:
            raise CheckpointError(f"{folder} holds more than {_COUNT_LIMIT} side files; keep one model a folder")
    return tuple(sorted(found))


def read_side_file(path: Path) -> bytes:
    """Return the content of a side file.

    Raises:
        CheckpointError: It cannot be read, or is too large to be a side file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(_SIZE_LIMIT + 1)
    _check_size(path, len(content))
    return content


def check_side_paths(paths: Iterable[str]) -> None:
    """Check the relative paths of side files that a stranger named.

    Raises:
        CheckpointError: One would leave the folder, is hidden, is no kind of file that a checkpoint needs, or
            is a folder on another one's way.
    """
    checked = {_check_side_path(path) for path in paths}
    blocked = [str(path) for path in checked if not checked.isdisjoint(path.parents)]
    if blocked:
        raise CheckpointError(f"{listed(blocked)} would lie inside another side file; rename one of the two")


def _check_side_path(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if not is_inside(path) or not _is_side_file(relative):
        raise CheckpointError(
            f"{path!r:.200} cannot be a side file of a checkpoint; allowed are relative paths that stay in "
            f"the folder, are not hidden, and end in {', '.join(sorted(_SUFFIXES))}, not {_INDEX_SUFFIX}"
        )
    return relative


def is_inside(path: str) -> bool:
    """Return whether a relative path names something inside its folder, and can be a file's name."""
    # Unprintable are NUL, terminal controls and half surrogate pairs: each breaks some reader of a path.
    return path.isprintable() and not {"", ".", ".."}.intersection(path.split("/"))


def _is_side_file(path: Path | PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix in _SUFFIXES and not path.name.endswith(_INDEX_SUFFIX)


def _check_size(path: Path, nbytes: int) -> None:
    if nbytes > _SIZE_LIMIT:
        raise CheckpointError(
            f"{path} has more than {_SIZE_LIMIT} bytes, too large for a side file; move it out of the folder"
        )
