"""Servers of engines that are timed while they start."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[1]
DEADLINE = 600.0
"""Seconds that a server may take to answer."""


_LOADED = re.compile(r"([\d.]+) GB in \d+ tensors from peer \S+ over \S+ in ([\d.]+) s")
_LOAD_STAGE = re.compile(r"\]   (\w[\w ]*\w) +([\d.]+) s")
_FETCHED = re.compile(r"files \(([\d.]+) of [\d.]+ MB\) fetched over \S+ from \S+ in ([\d.]+) s")


@dataclasses.dataclass(frozen=True)
class Brought:
    """What came from a peer, as a replica's log says: bytes, seconds in all, and seconds of each stage."""

    nbytes: float
    seconds: float
    stages: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Start:
    """What one start took, in seconds: until the server answers, and of that the stage that the engine reports.

    Args:
        healthy: Until the server answers.
        initialised: The stage that the engine reports.
        weights: What came of them from a peer, if any did.
        caches: Likewise.
    """

    healthy: float
    initialised: float
    weights: Brought | None
    caches: Brought | None


@dataclasses.dataclass(frozen=True)
class Replica(ABC):
    """A replica of an engine.

    Args:
        folder: For its caches and its log.
        model: The checkpoint.
        registry: HOST:PORT.
        from_peer: Whether weights come from a peer where one has them; otherwise the engine loads them natively.
        caches: Whether caches of compiled kernels are transferred.
    """

    engine: ClassVar[str]
    stage: ClassVar[str]
    """What the engine reports the time of."""
    reported: ClassVar[re.Pattern[str]]
    filled: ClassVar[int]
    """How many kinds of caches it fills on this machine."""

    folder: Path
    model: Path
    registry: str
    from_peer: bool
    caches: bool

    @contextmanager
    def run(self) -> Iterator[Start]:
        """Start it, and stop it at the end of the block."""
        port, log = free_port(), self.folder / "log.txt"
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.command(), "--host", "127.0.0.1", "--port", str(port)],
                env=self._environment(port),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            _await_health(port, process, log)
            healthy = time.monotonic() - started
            said = log.read_text()
            yield Start(healthy, float(self.reported.findall(said)[-1]), _weights_in(said), _caches_in(said))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)

    @abstractmethod
    def command(self) -> list[str]:
        """Return what starts the server, all but host and port."""

    @abstractmethod
    def variables(self) -> Mapping[str, str]:
        """Return the engine's own variables."""

    def _own_folders(self) -> Mapping[str, str]:
        """Return the variables that let a replica find nothing of another one's, as on a host of its own."""
        # Importing torch has put its folder into the environment of this process.
        folders = {name: self.folder / name.lower() for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        return {name: str(folder) for name, folder in folders.items()}

    def _environment(self, port: int) -> Mapping[str, str]:
        return {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            **self._own_folders(),
            "MX_SERVER_ADDRESS": self.registry,
            "MX_ARTIFACT_TRANSFER": str(int(self.caches)),
            "MX_ARTIFACT_READY_URL": f"http://127.0.0.1:{port}/health",
            **self.variables(),
        }


class VllmReplica(Replica):
    """`vllm serve`, without what it compiles ahead of time: that does not load again on processors."""

    engine = "vLLM"
    ahead: ClassVar[bool] = False
    stage = "engine initialised"
    reported = re.compile(r"init engine \(.*\) took ([\d.]+) s")
    filled = 2

    def command(self) -> list[str]:
        vllm = str(ROOT / ".engines" / "vllm" / "bin" / "vllm")
        load_format = "modelexpress" if self.from_peer else "auto"
        options = ["--max-model-len", "256", "--dtype", "bfloat16", "--load-format", load_format]
        return [vllm, "serve", str(self.model), *options]

    def variables(self) -> Mapping[str, str]:
        return {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_USE_AOT_COMPILE": str(int(self.ahead)),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        }


class AheadVllmReplica(VllmReplica):
    """`vllm serve` as it is by itself."""

    engine = "vLLM by itself"
    ahead = True


class SglangReplica(Replica):
    """SGLang's server."""

    engine = "SGLang"
    stage = "weights loaded"
    reported = re.compile(r"Load weight end\. elapsed=([\d.]+) s")
    filled = 0

    def command(self) -> list[str]:
        python = str(ROOT / ".engines" / "sglang" / "bin" / "python")
        options = ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        options += ["--grammar-backend", "none", "--disable-overlap-schedule", "--max-total-tokens", "4096"]
        if self.from_peer:
            options += ["--load-format", "remote_instance"]
            options += ["--remote-instance-weight-loader-backend", "modelexpress"]
        return [python, "-m", "sglang.launch_server", "--model-path", str(self.model), *options]

    def variables(self) -> Mapping[str, str]:
        return {"SGLANG_USE_CPU_ENGINE": "1", "MODEL_EXPRESS_URL": self.registry}


REPLICAS: dict[str, type[Replica]] = {"vllm": VllmReplica, "vllm_ahead": AheadVllmReplica, "sglang": SglangReplica}


def _weights_in(log: str) -> Brought | None:
    if (found := _LOADED.search(log)) is None:
        return None
    stages = {name: float(seconds) for name, seconds in _LOAD_STAGE.findall(log, found.end())}
    return Brought(float(found[1]) * 1e9, float(found[2]), stages)


def _caches_in(log: str) -> Brought | None:
    found = [(float(megabytes), float(seconds)) for megabytes, seconds in _FETCHED.findall(log)]
    if not found:
        return None
    return Brought(sum(megabytes for megabytes, _ in found) * 1e6, sum(seconds for _, seconds in found))


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _await_health(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with status {process.returncode}: {log.read_text()[-4000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the server did not answer within {DEADLINE:.0f} s: {log.read_text()[-4000:]}")
