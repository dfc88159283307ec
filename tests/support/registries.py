"""Real registries for tests: `mx serve` as a process of its own."""

import subprocess
import sys
from types import TracebackType
from typing import Self


class RegistryProcess:
    """A registry on a free port of the loopback interface; a context manager.

    Args:
        store: As `mx serve --store` takes it.
        listen: HOST:PORT; the same port again brings a killed registry back.
    """

    def __init__(self, store: str = "memory", listen: str = "127.0.0.1:0", *options: str) -> None:
        self._command = [sys.executable, "-m", "modelexpress.cli", "serve", "--store", store, *options]
        self.address = listen
        self.metrics = ""
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Start it, also again after `kill`, and wait until it listens."""
        self.process = subprocess.Popen(
            [*self._command, "--listen", self.address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the registry ended with status {self.process.wait(10)}"
        self.address = line.strip().rsplit(" ", 1)[-1]
        if "--metrics" in self._command:
            self.metrics = self.process.stdout.readline().strip().rsplit(" ", 1)[-1]
        return self.process

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """End it as an operator would, and return its exit status."""
        self.process.terminate()
        self._reap()
        return self.process.returncode

    def _reap(self) -> None:
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self._reap()
