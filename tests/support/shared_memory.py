"""Files of shared memory that engines leave behind, however they end."""

from collections.abc import Iterable
from pathlib import Path

import psutil

_FOLDER = "/dev/shm/"


def shared_memory_of(pid: int) -> set[Path]:
    """Return the files of shared memory that a process and those it has started have mapped; none when it is gone."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return set()
    paths: set[Path] = set()
    for process in family:
        try:
            paths.update(Path(area.path) for area in process.memory_maps() if area.path.startswith(_FOLDER))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return paths


def remove(paths: Iterable[Path]) -> None:
    """Remove files, those that somebody else has removed as well."""
    for path in paths:
        path.unlink(missing_ok=True)
