"""A process that receives a TensorRT-LLM checkpoint, and says how far it is, from whom, and how much memory it took."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelexpress.engines.trtllm import MxTrtllmTargetLoader
from tests.support.children import Child, say


class TrtllmTarget(Child):
    """Starts the process; it loads when it is told to.

    Args:
        registry: HOST:PORT.
        name: Of the model.
        out: Gets the folder `checkpoint`.
        environment: Variables of the process.
    """

    def __init__(self, registry: str, name: str, out: Path, environment: Mapping[str, str] | None = None) -> None:
        variables = {"MX_WORKER_GRPC_PORT": "0", **(environment or {})}
        super().__init__("tests.support.trtllm_target", registry, name, str(out), environment=variables)
        self.checkpoint = out / "checkpoint"
        assert self.answer() == "ready"

    def start(self) -> None:
        """Let it load, without waiting for that."""
        self.tell("load")

    def reach(self, tenths: int) -> None:
        """Wait until so many tenths of the load are in place."""
        while self.answer()["tenths"] < tenths:
            pass

    def report(self) -> dict[str, Any]:
        """Wait until it has loaded, and return how.

        `peak` is the memory that it took at most, mapped files included; `travelled` the bytes that came from the last
        sources; `sources` has the worker id of the last source of each rank; `log` is what was logged.
        """
        while "peak" not in (found := self.answer()):
            pass
        return dict(found)

    def is_worker(self, worker_id: str) -> bool:
        """Return whether a worker id is one of this process."""
        return worker_id.split("-")[-2] == str(self.process.pid)


def peak_bytes() -> int:
    """Return the most memory that this process has had, mapped files included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.lines.append(record.getMessage())


def main() -> None:
    """Load once when told, and say how far it is after every tenth: REGISTRY MODEL FOLDER."""
    registry, name, out = sys.argv[1:]
    lines, tenths = Lines(), 0
    logger = logging.getLogger("modelexpress")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)

    def progress(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            say(json.dumps({"tenths": tenths}))

    loader = MxTrtllmTargetLoader(name, registry, out, wait=10, progress=progress)
    say(json.dumps("ready"))
    sys.stdin.readline()
    before = peak_bytes()
    loader.load(skip_build=True)
    found = [re.match(r"rank (\d+): .* from (\S+) over", line) for line in lines.lines]
    report = {
        "peak": peak_bytes() - before,
        "travelled": loader.get_transfer_stats()["total_bytes"],
        "sources": {each[1]: each[2] for each in found if each},
        "log": lines.lines,
    }
    say(json.dumps(report))


if __name__ == "__main__":
    main()
