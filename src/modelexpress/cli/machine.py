"""What this machine is: the facts that every measurement is printed with."""

import dataclasses
import os
import platform
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine and the moment of a measurement.

    Args:
        processor: Its name, as the kernel tells it.
        cores: How many this process may use.
        memory_bytes: Installed, or what the container may use.
        kernel: Release of the kernel.
        python: Version of the interpreter.
        load: Runnable processes, averaged over the last minute: other work that measurements share the machine with.
        date: Day of the measurement, UTC.
    """

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    load: float
    date: str

    @classmethod
    def this(cls) -> "Machine":
        """Return the machine that this process runs on."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=memory_bytes(),
            kernel=platform.release(),
            python=platform.python_version(),
            load=round(os.getloadavg()[0], 2),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.python}, load {self.load}, {self.date}"
        )


def memory_bytes() -> int:
    """Return the bytes of memory that this machine has, or that the container may use where that is less."""
    limit = container_limit()
    total = _meminfo("MemTotal")
    return total if limit is None else min(total, limit)


def available_bytes() -> int:
    """Return the bytes of memory that can still be taken without swapping."""
    return _meminfo("MemAvailable")


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that the control group of a container allows, or None without a limit."""
    try:
        text = (root / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _meminfo(field: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
