"""Child processes of a command: they say something on standard output, and end when their standard input does."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from modelexpress.errors import ModelExpressError
from modelexpress.settings import variables

_PATIENCE = 10.0
"""Seconds that a child gets to end by itself."""

_LAST_WORDS = 2000
"""Characters of a failed child's messages that are passed on."""


class ChildFailed(ModelExpressError):
    """A child process ended before it had said what it was asked for."""


class Child:
    """A Python process that works for this one.

    The settings in the environment are those of the user's fleet: a child that measures or demonstrates something
    on this machine alone starts without them. What it says on standard error is kept, and shown when it fails.

    Args:
        messages: Takes the child's standard error; it must stay open as long as the child is used.
        arguments: Of the interpreter: `-m` and a module, or the path of a script, and then its own.
    """

    def __init__(self, messages: IO[str], *arguments: object) -> None:
        own = {variable for variable, _, _ in variables()}
        environment = {name: value for name, value in os.environ.items() if name not in own}
        self._name = " ".join(map(str, arguments[:2]))
        self._messages = messages
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the command alone, which ends its children in order
            env=environment | {"MX_WORKER_GRPC_PORT": "0"},
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def tell(self, text: str = "") -> None:
        """Send the child a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """Return the next line that the child prints.

        Raises:
            ChildFailed: It ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait(_PATIENCE)
            self._messages.seek(0)
            said = self._messages.read()[-_LAST_WORDS:]
            raise ChildFailed(f"python {self._name} ended with status {status}: {said or 'it said nothing'}")
        return line.strip()

    def answer(self) -> dict[str, Any]:
        """Return the JSON object in the next line."""
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def end(self) -> None:
        """Ask the child to end, and see to it that it does."""
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def child(*arguments: object) -> Iterator[Child]:
    """Run Python with these arguments until the block ends."""
    with tempfile.TemporaryFile("w+") as messages:
        process = Child(messages, *arguments)
        try:
            yield process
        finally:
            process.end()


@contextmanager
def private_registry() -> Iterator[str]:
    """Run a registry that nobody else knows until the block ends; yield its HOST:PORT."""
    with child("-m", "modelexpress.cli", "serve", "--listen", "127.0.0.1:0", "--store", "memory") as registry:
        yield registry.line().rsplit(" ", 1)[-1]
