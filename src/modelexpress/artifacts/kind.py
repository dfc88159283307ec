"""What a kind of cache is: where it lives, which of its files travel, and what identity fits it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import ClassVar

from modelexpress.identity import SourceIdentity, SourceType

STATE_FOLDER = ".modelexpress"
"""Holds our own locks, marks and unfinished installations, in the root of each cache that we install into."""

_UNFINISHED = (".lock", ".tmp", ".temp", ".partial", ".part", ".swp", ".pid", ".log")
_UNFINISHED_NAMES = frozenset({"lock", "locks", "tmp", "temp", "__pycache__"})
_UNFINISHED_BEGINNINGS = ("tmp.", ".tmp", ".nfs", ".mx-")


class Kind(ABC):
    """One kind of cache of compiled code.

    Attributes:
        name: What people call it, and what names it in settings and logs.
        source_type: What the protocol calls it.
        shows_use: Whether an engine that uses an entry reads it, so that one can tell.
    """

    name: ClassVar[str]
    source_type: ClassVar[SourceType]
    shows_use: ClassVar[bool] = True

    @abstractmethod
    def root(self, environ: Mapping[str, str]) -> Path:
        """Return the folder in which a process with these variables keeps this cache; it need not exist.

        An engine whose own default differs from the one of the library sets the variable in the mapping.
        """

    @abstractmethod
    def belongs(self, path: PurePosixPath) -> bool:
        """Return whether a file travels; `path` is relative to the root.

        Locks, logs and unfinished files must not: `is_litter` knows the usual ones.
        """

    @abstractmethod
    def identity(self, base: SourceIdentity, *, compile_config_digest: str = "") -> SourceIdentity:
        """Return the identity under which this cache is offered and looked for.

        Args:
            base: What the engine says about itself and its model.
            compile_config_digest: The operator's word for whatever else decides the compiled code, where that
                matters.

        Raises:
            IdentityError: `base` lacks a field without which this cache cannot be told from an unfit one.
        """

    def comes_last(self, path: PurePosixPath) -> bool:
        """Return whether a file refers to others of the cache, and must not be seen before they are there."""
        return False

    def localised(self, path: PurePosixPath, content: memoryview, root: Path) -> bytes | None:
        """Return what a file that came from another host must hold here; None: what it holds already.

        Args:
            path: Of the file, relative to the root.
            content: As it arrived, verified.
            root: Of this host's cache.
        """
        return None


class ContentKeyedKind(Kind):
    """A cache whose entries are named after everything that decided them: one that does not fit is never found."""

    def identity(self, base: SourceIdentity, *, compile_config_digest: str = "") -> SourceIdentity:
        # Model, sizes and versions only make it likely that a source holds what this target will look up. Which
        # weights the model has does not matter, and an identity without a model's name is as good as any.
        return replace(base, mx_source_type=self.source_type, revision="", compile_config_digest="")


def is_litter(path: PurePosixPath) -> bool:
    """Return whether a file is a lock, a log, unfinished, or one of ours: what no kind of cache lets travel."""
    return path.parts[0] == STATE_FOLDER or any(_is_litter(part.lower()) for part in path.parts)


def home(environ: Mapping[str, str]) -> Path:
    """Return the home folder of a process with these variables."""
    return Path(environ.get("HOME") or Path.home())


@lru_cache(maxsize=1 << 14)
def _is_litter(name: str) -> bool:
    if name in _UNFINISHED_NAMES or name.endswith(("~", *_UNFINISHED)):
        return True
    return name.startswith(_UNFINISHED_BEGINNINGS)
