"""Building an engine from a checkpoint: `trtllm-build`, as a process of its own."""

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from modelexpress.engines.trtllm.errors import BuilderMissing, BuildFailed
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)

BUILDER = "trtllm-build"

BuildConfig = Mapping[str, object]
"""Options of `trtllm-build` without their dashes, and their values; None leaves an option out."""


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

    An engine that is there is replaced; of one that could not be built nothing is left.

    Args:
        builder: The program.
        checkpoint: What to build from.
        engine: The folder to build into.
        config: The builder's options.

    Raises:
        BuildFailed: The builder ended with an error, or could not be started.
    """
    shutil.rmtree(engine, ignore_errors=True)
    engine.mkdir(parents=True)
    command = [str(builder), "--checkpoint_dir", str(checkpoint), "--output_dir", str(engine)]
    for name, value in config.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    logger.info("running %s", " ".join(command))
    started = time.perf_counter()
    try:
        # Standard output belongs to the caller, who may print something for programs there.
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, check=False).returncode
    except OSError as error:
        shutil.rmtree(engine, ignore_errors=True)
        raise BuildFailed(f"{builder} cannot be started: {error.strerror}; install TensorRT-LLM again") from error
    except BaseException:  # Ctrl-C and the like, which end the builder, too; raised again
        shutil.rmtree(engine, ignore_errors=True)
        raise
    seconds = time.perf_counter() - started
    if code != 0:
        shutil.rmtree(engine, ignore_errors=True)
        logger.error(
            "%s ended with code %d after %.1f s; the checkpoint is complete: %s", BUILDER, code, seconds, checkpoint
        )
        raise BuildFailed(f"{BUILDER} failed with code {code}")
    logger.info("engine built in %.1f s: %s", seconds, engine)
    return engine
