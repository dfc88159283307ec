"""A process that builds an engine and does nothing about signals, as a program of somebody else may."""

import os
import signal
import sys
import threading
from pathlib import Path

from modelexpress.engines.trtllm.build import build_engine
from tests.support.children import say
from tests.support.trtllm_build_processes import await_processes


def main() -> None:
    """Build: BUILDER CHECKPOINT ENGINE; with "fork" behind them, fork a process that goes on until it is killed."""
    builder, checkpoint, engine, *more = sys.argv[1:]
    if more:
        threading.Thread(target=_fork, args=(Path(engine),), daemon=True).start()
    build_engine(Path(builder), Path(checkpoint), Path(engine), {})


def _fork(engine: Path) -> None:
    await_processes(engine)
    if forked := os.fork():
        say(str(forked))
    else:
        signal.pause()


if __name__ == "__main__":
    main()
