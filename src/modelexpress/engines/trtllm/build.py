"""Building an engine from a checkpoint: `trtllm-build`, as a process of its own."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from modelexpress.engines.trtllm import build_guard
from modelexpress.engines.trtllm.errors import BuilderMissing, BuildFailed
from modelexpress.settings import Settings
from modelexpress.weights.staging_folder import StagingFolder

logger = logging.getLogger(__name__)

BUILDER = "trtllm-build"

BuildConfig = Mapping[str, object]
"""Options of `trtllm-build` without their dashes, and their values.

True stands for an option that has no value; None and False leave one out.
"""


def default_build_config(settings: Settings) -> dict[str, object]:
    """Return the options that are used where the caller names no others."""
    return {
        "gemm_plugin": "auto",
        "max_batch_size": settings.trtllm_max_batch_size,
        "max_input_len": settings.trtllm_max_input_len,
        "max_seq_len": settings.trtllm_max_seq_len,
    }


def find_builder() -> Path:
    """Return where `trtllm-build` is.

    Raises:
        BuilderMissing: It is not installed.
    """
    found = shutil.which(BUILDER)
    if found is None:
        raise BuilderMissing(f"{BUILDER} is not on the PATH: install TensorRT-LLM, or skip the build (skip_build)")
    return Path(found)


def build_engine(builder: Path, checkpoint: Path, engine: Path, config: BuildConfig) -> Path:
    """Build an engine and return its folder. What the builder prints appears on standard error as it comes.

    It is built under a hidden name beside its folder, and moved into place when it is complete: one that is there stays
    until then. Of one that could not be built nothing is left. The builder and what it starts end with this process,
    however that ends.

    Args:
        builder: The program.
        checkpoint: What to build from.
        engine: The folder of the engine.
        config: The builder's options.

    Raises:
        BuildFailed: The builder ended with an error, or could not be started.
        CheckpointError: The engine's folder cannot be created or replaced.
    """
    started = time.perf_counter()
    with StagingFolder(engine, overwrite=True) as staging:
        code = _run(_command(builder, checkpoint, staging.path, config))
        seconds = time.perf_counter() - started
        if code != 0:
            logger.error(
                "%s ended with code %d after %.1f s; the checkpoint is complete: %s", BUILDER, code, seconds, checkpoint
            )
            raise BuildFailed(f"{BUILDER} failed with code {code}")
        staging.publish()
    logger.info("engine built in %.1f s: %s", seconds, engine)
    return engine


def _command(builder: Path, checkpoint: Path, output: Path, config: BuildConfig) -> list[str]:
    command = [str(builder), "--checkpoint_dir", str(checkpoint), "--output_dir", str(output)]
    for name, value in config.items():
        if value is True:
            command.append(f"--{name}")
        elif value is not None and value is not False:
            command += [f"--{name}", str(value)]
    return command


def _run(command: Sequence[str]) -> int:
    """Run a program with all that it starts, and return its exit status."""
    logger.info("running %s", " ".join(command))
    with _group() as group:
        try:
            # Standard output belongs to the caller, who may print something for programs there.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, process_group=group.pid
            )
        except OSError as error:
            raise BuildFailed(
                f"{command[0]} cannot be started: {error.strerror}; install TensorRT-LLM again"
            ) from error
        try:
            # It is not reaped yet, so that nothing of its group ends up in another's.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            # Also when this process is told to end. Nothing that the program left running may write to the engine.
            os.killpg(group.pid, signal.SIGKILL)
            code = process.wait()
    return code


@contextmanager
def _group() -> "Iterator[subprocess.Popen[bytes]]":
    """Yield the guard of a group of processes, which ends with this process, however that ends, or with the block."""
    command = [sys.executable, "-I", "-S", build_guard.__file__, str(os.getpid())]
    nowhere = subprocess.DEVNULL
    try:
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, process_group=0)
    except OSError as error:
        raise BuildFailed(f"{command[0]} cannot be started: {error.strerror}; free processes and memory") from error
    with guard:
        try:
            yield guard
        finally:
            # It is not reaped yet, so that the number of its group cannot be another's.
            os.killpg(guard.pid, signal.SIGKILL)
