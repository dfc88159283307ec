"""What loading and being a source cost in memory, processor time and start-up."""

import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from modelexpress.cli.bench_source import tensor_sizes
from modelexpress.cli.child import child

_BETWEEN_LOOKS = 0.02
_IMPORTS = 9
_IMPORT = "import time; t = time.perf_counter(); import modelexpress; print(time.perf_counter() - t)"
_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+\s*(.*)")


def peak_bytes_over(registry: str, nbytes: int, tensors: int, transport: str) -> int:
    """Return how far a target's own memory rises above the model's size and what the process had before the load."""
    arguments = ("--bytes", nbytes, "--tensors", tensors, "--transport", transport)
    with child("-m", "modelexpress.cli.bench_target", registry, *arguments) as target:
        target.tell("once, to import everything and to touch the machine's memory")
        target.answer()
        before = own_bytes(target.pid)
        target.tell()
        with _Watch(target.pid) as watch:
            target.answer()
    return watch.peak - before - sum(tensor_sizes(nbytes, tensors))


def own_bytes(pid: int) -> int:
    """Return the resident bytes of a process, without memory of other processes that it has mapped to read.

    A target of `local` maps the source's arena: those pages count as resident in both, and exist once.
    """
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if header := _HEADER.match(line):
            permissions, name = header.groups()
            counts = not (permissions == "r--s" and "memfd:" in name)
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


class _Watch:
    """Looks at a process again and again until the block ends; `peak` is the most of its own memory."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")

    def _look(self) -> None:
        while not self._stop.wait(_BETWEEN_LOOKS):
            self.peak = max(self.peak, own_bytes(self._pid))

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def idle_cost(pid: int, seconds: float) -> float:
    """Return the seconds of processor time that a process uses in a minute, watched for some seconds."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) * 60 / seconds


def import_seconds() -> float:
    """Return how long a fresh interpreter takes to import the package: the median of some."""
    runs = [subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True) for _ in range(_IMPORTS)]
    return statistics.median(float(run.stdout) for run in runs)
