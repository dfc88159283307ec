"""Runs a page of the documentation as a reader would: its commands in order, its Python blocks as files."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.shared_memory import remove, shared_memory_of
from tests.support.waiting import wait_until

GO_ON = ("mx serve", "mx publish", "python source.py", "python replica.py")
"""Commands that go on running: their first line of output says that they are ready."""

_ENGINE = re.compile(r"(vllm serve|sglang\.launch_server) .*--port (?P<port>\d+)")
"""Commands that start an engine's server, which is ready when it is healthy."""

_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PATIENCE = 100


@dataclass
class Reader:
    """Somebody who types what a page says into a shell.

    Args:
        folder: Where the shell is.
        port: Used in place of 8001, which may be taken here.
        engine: Returns the variables of an engine's server by its port.
        engine_ports: Used in place of those that their pages name.
    """

    folder: Path
    port: int
    engine: Callable[[int], Mapping[str, str]] | None = None
    engine_ports: Mapping[int, int] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tools = str(Path(sys.executable).parent)
        self._environment = os.environ | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "MX_WORKER_GRPC_PORT": "0",
        }
        self._running = ExitStack()

    def follow(self, page: Path) -> None:
        """Do what a page says, from its top to its end."""
        text = page.read_text().replace("8001", str(self.port))
        for named, used in self.engine_ports.items():
            text = text.replace(f":{named}", f":{used}").replace(f"--port {named}", f"--port {used}")
        for kind, content in _BLOCK.findall(text):
            if kind == "python":
                self._write(content)
                continue
            for command in commands(content):
                self._type(command)

    def _write(self, content: str) -> None:
        name = re.match(r"# (\w+\.py)\n", content)
        assert name, f"a Python block starts with the name of its file as a comment: {content[:60]!r}"
        (self.folder / name[1]).write_text(content)

    def _type(self, command: str) -> None:
        if command.startswith("make "):
            return  # .ci/run does what these commands do
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            if name != "PATH":
                self._environment[name] = "".join(shlex.split(value))
        elif command.startswith(GO_ON):
            self._start(command)
        elif engine := _ENGINE.search(command):
            self._serve(command, int(engine["port"]))
        else:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        self.ran.append(command)

    def _start(self, command: str) -> None:
        process = subprocess.Popen(
            command.split(),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._running.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline(), f"$ {command}\nended with status {process.wait(_PATIENCE)}"

    def _serve(self, command: str, port: int) -> None:
        """Start an engine's server, and wait until it is healthy."""
        assert self.engine is not None, f"this page needs an engine: {command}"
        environment = {**self._environment, **self.engine(port)}
        log = self.folder / f"engine-{port}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, shell=True, cwd=self.folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._running.callback(_end_group, process)

        def healthy() -> bool:
            assert process.poll() is None, f"$ {command}\n{log.read_text()[-3000:]}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return True
            except OSError:
                return False

        wait_until(healthy, 300)

    def log(self, port: int) -> str:
        """Return what an engine's server has said so far."""
        return (self.folder / f"engine-{port}.log").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a console block."""
    for line in block.splitlines():
        assert line.startswith("$ "), f"a console block holds commands only: {line!r}"
        yield line.removeprefix("$ ").split("  #")[0]


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate(timeout=_PATIENCE)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    left_behind = shared_memory_of(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_PATIENCE)
    remove(left_behind)
