"""Real servers of engines, in the environments that scripts/engines.py makes, started as their users start them."""

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.shared_memory import remove, shared_memory_of
from tests.support.waiting import wait_until


class EngineProcess:
    """A server of an engine and whatever processes it starts, on a free port of the loopback interface.

    None of them outlives the block, and neither does the shared memory that they leave behind.

    Args:
        command: What starts it; it is given its host and port.
        environment: Variables that it has beside those of this process.
        log: Where everything it says goes.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.port = free_port()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment),
                start_new_session=True,
            )

    def wait_healthy(self, deadline: float = 120.0) -> Self:
        """Wait until it serves; fail when it ends before, or after `deadline` seconds."""

        def healthy() -> bool:
            status = self.process.poll()
            assert status is None, f"the engine ended with status {status}:\n{self.messages[-4000:]}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        wait_until(healthy, deadline)
        return self

    def post(self, path: str, fields: Mapping[str, object]) -> Any:
        """Send JSON to a path, and return its JSON answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(fields).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    @property
    def messages(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill every process of it as the kernel would, and remove the shared memory that they used."""
        used = shared_memory_of(self.process.pid)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the group that it was started in
        self.process.wait(20)
        remove(used)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class SglangServer(EngineProcess):
    """SGLang's server on the host alone.

    Args:
        python: Of the environment with SGLang.
        model: A checkpoint folder.
        log: Where everything it says goes.
        options: Of the server.
        environment: Further variables.
    """

    def __init__(
        self, python: Path, model: Path, log: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        variables = {"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1"}
        command = [str(python), "-m", "sglang.launch_server", "--model-path", str(model), "--device", "cpu"]
        command += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
        command += ["--disable-overlap-schedule", "--max-total-tokens", "4096", "--skip-server-warmup", *options]
        super().__init__(command, variables | dict(environment or {}), log)

    def generate(self, prompt: str, count: int = 12) -> list[int]:
        """Return the likeliest `count` tokens after a prompt."""
        sampling = {"max_new_tokens": count, "temperature": 0}
        tokens: list[int] = self.post("/generate", {"text": prompt, "sampling_params": sampling})["output_ids"]
        return tokens


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port
