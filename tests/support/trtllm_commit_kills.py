"""A process that puts a checkpoint in place again and again, and is killed at each step on the way in turn."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from modelexpress.engines.trtllm.config import rank_name
from modelexpress.engines.trtllm.partial_folder import PartialFolder
from tests.support.children import say

NAME = "checkpoint"
HEADER = b"header"
SIZE = 4096
RANKS = 2
FILES = {"config.json": b"{}"}
_STEPS = {"os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil.rmtree"}
"""Audit events of what changes a folder; the kill comes before it. The call that swaps two is looked up by its name."""


def content(version: int, rank: int) -> bytes:
    """Return the bytes of a rank's file."""
    return HEADER.ljust(SIZE - 2) + bytes([version, rank])


def main() -> None:
    """Kill at the first step, then at the second, until there is none left: FOLDER, and "replace" for an old one."""
    folder, replaces = Path(sys.argv[1]), sys.argv[2] == "replace"
    for step in count():
        out = folder / str(step)
        if replaces:
            assert _forked(partial(_load, out, 1)) == 0
        ended = _forked(partial(_load, out, 2, kill_at=step))
        if ended == 0:
            say(json.dumps("through"))
            return
        assert ended == -signal.SIGKILL
        left = _version(out / NAME)
        ended = _forked(partial(_load, out, 2, fetches=False))
        listed = sorted(path.name for path in out.iterdir())
        say(json.dumps({"left": left, "next": ended, "listed": listed, "then": _version(out / NAME)}))


def _load(out: Path, version: int, *, kill_at: int | None = None, fetches: bool = True) -> None:
    """Receive a checkpoint, as far as it is not there, and put it in place."""
    with PartialFolder(out, NAME) as folder:
        for rank in range(RANKS):
            wanted = content(version, rank)
            in_place = folder.in_place(rank, HEADER, SIZE)
            if any(each.content[:] == wanted and folder.adopt(rank, each) for each in in_place):
                continue
            kept = folder.kept(rank, HEADER, SIZE)
            if kept is None or kept.content[:] != wanted:
                assert fetches, f"rank {rank} would travel again"
                folder.create(rank, HEADER, SIZE).content[:] = wanted
        if kill_at is not None:
            _kill_at(kill_at)
        folder.commit(RANKS, FILES)


def _kill_at(step: int) -> None:
    steps = count()

    def note(event: str, _: tuple[object, ...]) -> None:
        if event in _STEPS and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def _version(checkpoint: Path) -> int:
    """Return the version of a checkpoint that is in place and whole; 0 where there is none, -1 where it is mixed."""
    if not checkpoint.exists():
        return 0
    found = [(checkpoint / rank_name(rank)).read_bytes() for rank in range(RANKS)]
    version = found[0][-2]
    whole = found == [content(version, rank) for rank in range(RANKS)] and (checkpoint / "config.json").exists()
    return version if whole else -1


def _forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own, and return its exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
