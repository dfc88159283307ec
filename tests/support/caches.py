"""Caches of compiled kernels for tests: a kind of their own, and files that any process can make again."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from modelexpress.artifacts.kind import STATE_FOLDER, ContentKeyedKind, is_litter
from modelexpress.identity import SourceType

ROOT_VARIABLE = "TEST_CACHE"


class PlainKind(ContentKeyedKind):
    """Every finished file below the folder that a variable names."""

    name = "plain"
    source_type = SourceType.TRITON_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        """Return the folder that the variable names."""
        return Path(environ[ROOT_VARIABLE])

    def belongs(self, path: PurePosixPath) -> bool:
        """Return whether a file is finished."""
        return not is_litter(path)


class OtherKind(PlainKind):
    """The same, under a root of its own."""

    name = "other"
    source_type = SourceType.TILELANG_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        """Return a folder beside that of `PlainKind`."""
        return Path(environ[ROOT_VARIABLE] + "-other")


KINDS = {kind.name: kind for kind in (PlainKind(), OtherKind())}


def cache_files(count: int, nbytes: int, seed: int = 0) -> dict[str, bytes]:
    """Return the content of a cache by relative path: `count` files of `nbytes` each, and an empty one."""
    content = np.random.default_rng(seed).integers(0, 256, count * nbytes, np.uint8).tobytes()
    files = {f"{i % 7}/kernel-{i:05}/code.bin": content[i * nbytes : (i + 1) * nbytes] for i in range(count)}
    return files | {"marker": b""}


def write_cache(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write a cache; return its root."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def read_cache(root: Path) -> dict[str, bytes]:
    """Return every file of a cache that an engine would see, finished or not, by relative path."""
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in files.items() if name.parts[0] != STATE_FOLDER}
