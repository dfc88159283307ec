"""Processes that see the GPUs they are given: they answer in lines of JSON, and none can keep the others waiting.

Only the standard library is imported here: other packages' processes use it, too.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 240.0
"""Seconds that a process may take for an answer: writing and reading 61 GB takes two minutes."""

_LAST_WORDS = 1500
_FAREWELL = 30.0


class PartFailed(Exception):
    """A process of the benchmark ended, or fell silent, before it had answered."""


class Process:
    """A module run by this interpreter, until the block ends.

    Args:
        module: Its name.
        options: Its arguments.
        visible: CUDA_VISIBLE_DEVICES.
        site: A folder whose packages go before those of this environment.
    """

    def __init__(self, module: str, *options: object, visible: str = "", site: Path | None = None) -> None:
        self._name = module
        # Closed at the end of the block.
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible}
        if site is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            env=environment,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"reader of {module}", daemon=True)
        self._reader.start()

    def tell(self, **fields: object) -> None:
        """Send it a line.

        Raises:
            PartFailed: It has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(fields) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure("ended") from error

    def answer(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Return what it says next.

        Raises:
            PartFailed: It ended, or said nothing for `timeout` seconds.
        """
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise self._failure(f"said nothing for {timeout:g} s") from None
        if not line:
            raise self._failure(f"ended with status {self._status()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_FAREWELL if error is None else 2)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join(_FAREWELL)
        self._process.stdout.close()
        self._messages.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries write notices of their own there
                self._lines.put(line)
        self._lines.put("")

    def _status(self) -> int | str:
        try:
            return self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            return "unknown"

    def _failure(self, what: str) -> PartFailed:
        self._messages.seek(0)
        said = self._messages.read()[-_LAST_WORDS:].strip()
        return PartFailed(f"{self._name} {what}: {said or 'no message'}")


def say(**fields: object) -> None:
    """In such a process: answer the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def hear() -> dict[str, Any]:
    """In such a process: return what the parent says next."""
    heard: dict[str, Any] = json.loads(sys.stdin.readline())
    return heard
