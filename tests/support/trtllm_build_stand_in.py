"""A stand-in for `trtllm-build`, which cannot be installed here: it builds nothing, and says so.

It takes the options that the real one takes, refuses others, checks that the checkpoint is complete, and writes a file
for each rank. STAND_IN_ENDS tells it how to end: a number is its exit status after half the work, `slow` goes on until
it is killed, with a second process that works for it.
"""

import argparse
import json
import os
import stat
import sys
import time
from pathlib import Path

from safetensors import safe_open

_OPTIONS = ("checkpoint_dir", "output_dir", "gemm_plugin", "max_batch_size", "max_input_len", "max_seq_len", "workers")
_FLAGS = ("fast_build", "monitor_memory")


def install(folder: Path) -> Path:
    """Put it under the name `trtllm-build` into a folder, which is returned for the PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / "trtllm-build"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def main() -> None:
    """Pretend to build an engine."""
    parser = argparse.ArgumentParser()
    for name in _OPTIONS:
        parser.add_argument(f"--{name}")
    for name in _FLAGS:
        parser.add_argument(f"--{name}", action="store_true", default=None)
    given = parser.parse_args()
    ends = os.environ.get("STAND_IN_ENDS", "0")
    checkpoint, output = Path(given.checkpoint_dir), Path(given.output_dir)
    sys.stdout.write("this is a stand-in for trtllm-build\n")
    sys.stdout.flush()
    sys.stderr.write(f"reading {checkpoint}\n")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (output / "rank0.engine").write_text(str(os.getpid()))
    if ends == "slow":
        _go_on(output)
    if ends != "0":
        sys.exit(int(ends))
    for rank in range(config["mapping"]["world_size"]):
        with safe_open(checkpoint / f"rank{rank}.safetensors", "pt") as file:
            (output / f"rank{rank}.engine").write_text(f"{len(list(file.keys()))} tensors")
    (output / "arguments.json").write_text(json.dumps(vars(given)))


def _go_on(output: Path) -> None:
    if helper := os.fork():
        (output / "rank1.engine").write_text(str(helper))
    while True:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
