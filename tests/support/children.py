"""Processes of a test's own: started as modules of this folder, spoken to line by line, never outliving their block."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any, Self

from tests.support.warm import start


class Child:
    """A process that runs a module, with its standard input and output as pipes.

    Args:
        module: The module's name.
        options: Its arguments.
        environment: Variables that it has beside those of this process.
        python: The interpreter.
        log: Where its standard error goes; None: to that of this process.
        warm: Fork it from a process that has imported torch, which takes seconds; with neither `python` nor `log`.
    """

    def __init__(
        self,
        module: str,
        *options: str,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
        log: IO[bytes] | None = None,
        warm: bool = False,
    ) -> None:
        variables = os.environ | dict(environment or {})
        if warm:
            self.process = start(module, options, variables)
            return
        self.process = subprocess.Popen(
            [python, "-m", module, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=variables,
        )

    def line(self) -> str:
        """Return the next line that it prints; "" when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def answer(self) -> Any:
        """Return what it prints next, as JSON."""
        line = self.line()
        assert line, f"the process ended with status {self.process.wait(20)}"
        return json.loads(line)

    def tell(self, what: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def say(line: str) -> None:
    """Print a line at once: what a child does when it is ready, or asked."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def told() -> str:
    """Return the line that a child is told next, "" at the end; signals are handled meanwhile.

    One that comes just before a read blocks would be handled after it: Python looks for signals between its own steps.
    Whoever tells sends a line only when the one before was answered.
    """
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    return sys.stdin.readline().strip()
