"""Triton's group files, which name the files of an entry by their full paths on the host that compiled it.

Source: `triton.runtime.cache.FileCacheManager`, methods `put_group` and `get_group`, as of Triton 3.6: an entry
whose paths do not exist is compiled again.
"""

import json
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.sealed import is_sealable

_PREFIX = "__grp__"
_PATHS = "child_paths"


def is_group(path: PurePosixPath) -> bool:
    """Return whether a file is a group file, which must be seen after the files that it names."""
    return path.name.startswith(_PREFIX) and path.suffix == ".json"


def relocated_group(path: PurePosixPath, content: memoryview, root: Path) -> bytes | None:
    """Return a group file that names the neighbours that it has below `root`; None where it is no such file.

    Whatever folder it named before, it names its own, and nothing that is no file's name: a group file cannot lead
    Triton out of the cache.
    """
    if not is_group(path):
        return None
    try:
        group = json.loads(bytes(content))
    except (ValueError, RecursionError):
        return None
    if not isinstance(group, dict) or not isinstance(group.get(_PATHS), dict):
        return None
    folder = root.joinpath(*path.parts[:-1])
    names = (name for name in group[_PATHS] if "/" not in name and is_sealable(f"/{name}"))
    here = {name: str(folder / name) for name in names}
    return json.dumps({**group, _PATHS: here}).encode()
