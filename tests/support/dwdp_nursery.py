"""A process that has imported what ranks need, and forks them: so that a group of ranks starts in no time.

Its input is a JSON line for each group; `Nursery` is the test's end of it.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # hooks need it: ranks that import it each for itself spend most of their time on it
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

import modelexpress.dwdp  # noqa: F401 -- what ranks need is imported once
from modelexpress.dwdp.host_machine import HostMachine  # noqa: F401 -- what ranks need is imported once
from tests.support.children import Child, say

DEADLINE = 90.0
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG


class Rank(NamedTuple):
    """What a case knows about the process that it runs in."""

    number: int
    world: int
    folder: Path

    def reached(self, point: str) -> None:
        """Tell the test that this rank got somewhere."""
        (self.folder / f"{point}-{self.number}").touch()


class Ended(NamedTuple):
    """How a rank ended.

    Args:
        code: Exit status, as of `subprocess`.
        result: What its case returned; None where it raised.
        error: Name of the exception's class, or "".
        message: Of the exception.
        trace: Where it was raised.
    """

    code: int
    result: Any
    error: str
    message: str
    trace: str


class Group:
    """Ranks that run a case."""

    def __init__(self, nursery: "Nursery", folder: Path, pids: Sequence[int]) -> None:
        self.folder, self.pids = folder, pids
        self._nursery = nursery

    def reached(self, point: str, rank: int) -> bool:
        """Return whether a rank got somewhere."""
        return (self.folder / f"{point}-{rank}").exists()

    def told(self, rank: int) -> bool:
        """Return whether a rank's case has come to its end."""
        return self._path(rank).exists()

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a rank a signal."""
        os.kill(self.pids[rank], number)

    def ended(self) -> list[Ended]:
        """Wait for all ranks, and return how each ended."""
        self._nursery.tell("wait")
        codes = self._nursery.answer()
        return [self._told(rank, code) for rank, code in enumerate(codes)]

    def results(self) -> list[Any]:
        """Wait for all ranks, and return what each returned; fail if one raised."""
        ended = self.ended()
        assert not any(rank.code or rank.error for rank in ended), "\n".join(
            f"rank {number}: status {rank.code}\n{rank.trace}" for number, rank in enumerate(ended)
        )
        return [rank.result for rank in ended]

    def _told(self, rank: int, code: int) -> Ended:
        told = json.loads(self._path(rank).read_text()) if self.told(rank) else {}
        return Ended(code, told.get("result"), *(told.get(key, "") for key in ("error", "message", "trace")))

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.json"


class Nursery(Child):
    """The process that forks ranks, as a test sees it. One group at a time."""

    def __init__(self) -> None:
        super().__init__(__name__, environment={"GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"})

    def start(self, folder: Path, case: str, world: int, *, properly: bool = False, **arguments: Any) -> Group:
        """Start a group of ranks.

        Args:
            folder: An empty one of its own.
            case: MODULE:FUNCTION, the module within tests.support; it is called with a `Rank` and the arguments.
            world: Ranks.
            properly: Whether ranks end as interpreters do, which takes a second, or at once.
            arguments: What JSON can carry.
        """
        order = {
            "case": case,
            "world": world,
            "folder": str(folder),
            "properly": properly,
            "arguments": arguments,
        }
        self.tell(json.dumps(order))
        return Group(self, folder, self.answer())

    def run(self, folder: Path, case: str, world: int, **arguments: Any) -> list[Any]:
        """Run a case to its end, and return what each rank returned; see `start`."""
        return self.start(folder, case, world, **arguments).results()


def main() -> None:
    """Fork the groups that are asked for, one after the other."""
    torch.set_num_threads(1)
    pids: list[int] = []
    while line := sys.stdin.readline():
        if line == "wait\n":
            say(json.dumps([_status(pid, time.monotonic() + DEADLINE) for pid in pids]))
            continue
        order = json.loads(line)
        module, _, function = order["case"].partition(":")
        # Before they are forked: what it imports is imported once.
        case = getattr(importlib.import_module(f"tests.support.{module}"), function)
        gc.freeze()
        pids = []
        for number in range(order["world"]):
            if not (pid := os.fork()):
                _run(Rank(number, order["world"], Path(order["folder"])), case, order["arguments"])
                if order["properly"]:
                    sys.exit()
                os._exit(0)
            pids.append(pid)
        say(json.dumps(pids))


def _status(pid: int, deadline: float) -> int:
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _run(rank: Rank, case: Callable[..., Any], arguments: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    told: dict[str, Any]
    try:
        store = FileStore(str(rank.folder / "store"), rank.world)
        dist.init_process_group(
            "gloo", store=store, rank=rank.number, world_size=rank.world, timeout=timedelta(seconds=30)
        )
        told = {"result": case(rank, **arguments)}
    except BaseException as error:  # noqa: BLE001 -- whatever a case raises is what the test looks at
        told = {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
    part = rank.folder / f"rank{rank.number}.part"
    part.write_text(json.dumps(told))
    part.rename(part.with_suffix(".json"))


if __name__ == "__main__":
    main()
