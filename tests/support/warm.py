"""A process that has imported what takes seconds, and forks processes of modules: they start in no time.

`start` is the test's end of it. The one process that forks is started when it is first needed, and ends with this one.
"""

import atexit
import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

IMPORTED = ("torch", "grpc", "modelexpress.peer", "modelexpress.registry.server", "modelexpress.weights.load")
"""What children need; none of it starts a thread or a library that a fork would break."""
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG
_FOREVER = 1e9


class Forked(subprocess.Popen[str]):
    """A process that was forked elsewhere, used as one of our own; its standard error is that of the tests."""

    def __init__(self, args: Sequence[str], environment: Mapping[str, str]) -> None:
        # Nothing is started by the class itself, whose end must not look for a child of this process either.
        self._child_created = False
        self.args, self.returncode, self.stderr = list(args), None, None
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        try:
            order = {"args": args, "environment": dict(environment), "folder": os.getcwd()}
            self.pid = int(_nursery().ask(order, [theirs_in, theirs_out, 2]))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
            self.stdin, self.stdout = os.fdopen(ours_in, "w"), os.fdopen(ours_out)

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = _nursery().ask({"pid": self.pid}, [])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, for so many seconds at most, and return its exit status."""
        end = time.monotonic() + (_FOREVER if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.005)
        return status


class _Nursery:
    """The process that forks, as a test sees it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            # Tests count threads of children, and numpy's are not meant.
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._answers = self._ours.makefile()

    def ask(self, question: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        """Send a question with open files, and return its answer."""
        data = json.dumps(question).encode() + b"\n"
        sent = socket.send_fds(self._ours, [data], descriptors) if descriptors else self._ours.send(data)
        assert sent == len(data)
        line = self._answers.readline()
        assert line, f"the process that forks ended with status {self._process.wait(20)}"
        return json.loads(line)

    def close(self) -> None:
        """End it; its children end with it."""
        self._answers.close()
        self._ours.close()
        self._process.wait(20)


@functools.cache
def _nursery() -> _Nursery:
    nursery = _Nursery()
    atexit.register(nursery.close)
    return nursery


def start(module: str, options: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that runs a module, with its standard input and output as pipes.

    Args:
        module: The module's name.
        options: Its arguments.
        environment: All variables that it has.
    """
    return Forked([module, *options], environment)


def main(descriptor: int) -> None:
    """Fork what is asked for, and tell how children ended; a child leaves this by running its module."""
    for name in IMPORTED:
        importlib.import_module(name)
    with socket.socket(fileno=descriptor) as tests:
        while True:
            data, received, _, _ = socket.recv_fds(tests, 1 << 16, 3)
            if not data:
                return
            while not data.endswith(b"\n"):
                data += tests.recv(1 << 16)
            question = json.loads(data)
            if "pid" in question:
                ended, status = os.waitpid(question["pid"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if ended else None
            elif not (answer := os.fork()):
                break
            for each in received:
                os.close(each)
            tests.sendall(json.dumps(answer).encode() + b"\n")
    _become(question, received)


def _become(order: Mapping[str, Any], streams: Sequence[int]) -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv[:] = order["args"]
    runpy.run_module(order["args"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
