"""The command `mx` as a process."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self


def start(*arguments: object, preexec: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    """Start `mx` with its three streams as pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelexpress.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )


def run(*arguments: object, preexec: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `mx` to its end, which must come within a minute."""
    with start(*arguments, preexec=preexec) as process:
        out, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


class Publishing:
    """`mx publish --json`, until the block ends.

    Args:
        arguments: After `mx publish`.
    """

    def __init__(self, *arguments: object) -> None:
        self.process = start("publish", "--json", *arguments)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.fields: dict[str, str] = json.loads(line)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send it a signal; return its exit status and what it said on standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
