"""A process that receives a TensorRT-LLM checkpoint and says how much memory that took at most."""

import json
import re
import sys
from pathlib import Path

from modelexpress.engines.trtllm import MxTrtllmTargetLoader
from tests.support.children import say


def peak_bytes() -> int:
    """Return the most memory that this process has had, mapped files included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main() -> None:
    """Load once: REGISTRY MODEL FOLDER."""
    registry, name, out = sys.argv[1:]
    loader = MxTrtllmTargetLoader(name, registry, out, wait=10)
    before = peak_bytes()
    loader.load(skip_build=True)
    say(json.dumps({"bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
