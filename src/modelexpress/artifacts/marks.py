"""One attempt for all processes of a host: the first makes it, the others wait for its end and take its result."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelexpress.artifacts.state import locked, state_folder

FAILURE_SECONDS = 60.0
"""How long a result counts for processes that come later: ranks of one replica start within less."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_REASON = 1_000


class Mine:
    """This process makes the attempt. Leaving the block without `succeed` is a failure, which the others see.

    A process that is told to end leaves no mark: that says nothing about the next one.
    """

    def __init__(self) -> None:
        self.succeeded = False
        self.paths: tuple[str, ...] = ()

    def succeed(self, paths: Sequence[str] = ()) -> None:
        """Say that the material is installed, and which files of the cache are new by it."""
        self.succeeded = True
        self.paths = tuple(paths)


@dataclass(frozen=True)
class InstalledByOther:
    """Another process installed it, `age` seconds ago, and these files, relative to the root, were new then."""

    age: float
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedRecently:
    """Another process failed `age` seconds ago, or is not through yet; go on without."""

    age: float
    reason: str


@contextmanager
def attempt(
    root: Path, key: str, ttl: float = FAILURE_SECONDS, *, wait: float = 900.0
) -> Iterator[Mine | InstalledByOther | FailedRecently]:
    """Make an attempt, or learn what came of that of another process of this host.

    A process that dies during its attempt frees it: the next one makes its own. Results are told by the clock that
    runs from the host's start, and those of other hosts, or of an earlier start, do not count.

    Args:
        root: Of the cache that is to be completed; the marks are in its state folder.
        key: Names the material: an artifact id, a source id.
        ttl: Seconds for which a result counts.
        wait: Seconds to wait for an attempt that is under way; after that it counts as failed.

    Raises:
        ArtifactError: No marks can be made in the cache.

    Example:
        >>> with attempt(Path("cache"), "8899ff") as state:
        ...     if isinstance(state, Mine):
        ...         state.succeed()
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    mark = _Mark(state_folder(root) / f"{name}.mark")
    if (seen := mark.read(ttl)) is not None:
        yield seen
        return
    with locked(mark.file.with_suffix(".lock"), wait) as free:
        if not free:
            yield FailedRecently(wait, f"another process has not come to an end within {wait:.0f} s")
            return
        if (seen := mark.read(ttl)) is not None:
            yield seen
            return
        mine = Mine()
        try:
            yield mine
        except Exception as error:  # whatever it was, the other processes are told of it, and it goes on up
            mark.write(mine, f"{type(error).__name__}: {error}")
            raise
        mark.write(mine, "it ended without a result")


class _Mark:
    """The result of the last attempt, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, mine: Mine, reason: str) -> None:
        value = {
            "succeeded": mine.succeeded,
            "reason": "" if mine.succeeded else reason[:_LONGEST_REASON],
            "paths": mine.paths,
            "boot": _boot(),
            "time": _now(),
        }
        unfinished = self.file.with_name(f"{self.file.name}.{secrets.token_hex(4)}.tmp")
        # Without a mark the others make attempts of their own, which is slow and not wrong.
        with suppress(OSError):
            unfinished.write_text(json.dumps(value))
            os.replace(unfinished, self.file)

    def read(self, ttl: float) -> InstalledByOther | FailedRecently | None:
        """Return the result, if there is one that still counts."""
        try:
            value: Any = json.loads(self.file.read_bytes())
            age = _now() - float(value["time"])
            if value["boot"] != _boot() or not 0 <= age < ttl:
                return None
            if value["succeeded"] is True:
                return InstalledByOther(age, tuple(str(path) for path in value["paths"]))
            return FailedRecently(age, str(value["reason"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
