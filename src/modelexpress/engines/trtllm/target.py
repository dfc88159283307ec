"""The target: a checkpoint received from its sources, and the engine built from it."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelexpress.engines.trtllm.build import BuildConfig, build_engine, default_build_config, find_builder
from modelexpress.engines.trtllm.config import CONFIG_NAME
from modelexpress.engines.trtllm.errors import NoSpace
from modelexpress.engines.trtllm.finding import Published, await_published
from modelexpress.engines.trtllm.partial_folder import PartialFolder
from modelexpress.engines.trtllm.receiving import Received, Receiving
from modelexpress.engines.trtllm.registry_address import registry_address
from modelexpress.engines.trtllm.relays import Relays
from modelexpress.errors import ConfigurationError
from modelexpress.settings import Settings
from modelexpress.weights.report import Progress
from modelexpress.weights.staging_folder import StagingFolder

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint"
ENGINE_NAME = "engine"

DEFAULT_WAIT = 3600.0
"""Seconds to wait for a source, where MX_SOURCE_QUERY_TIMEOUT does not say how long: targets may start before it."""

_NOTHING = {"total_bytes": 0.0, "total_time": 0.0, "bandwidth_gbps": 0.0}
"""What a load has moved that has not received everything."""


class MxTrtllmTargetLoader:
    """Receives a checkpoint and builds its engine.

    Every rank is received at once and written as it arrives. The folder of the checkpoint appears when everything is
    verified. A load that was interrupted goes on where it ended when it is started again.

    Args:
        model_name: As the source named it.
        mx_server: HOST:PORT of the registry, also with http:// before it; None takes it from the environment.
        output_dir: Gets the folders `checkpoint` and `engine`; None takes it from the environment.
        build_config: Options of `trtllm-build` that differ from the defaults; None as a value leaves one out.
        wait: Seconds to wait for a source; 0 asks once; None takes MX_SOURCE_QUERY_TIMEOUT, or an hour without it.
        source_id: Which of several checkpoints of that name is meant.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Attributes:
        checkpoint_dir: Where the checkpoint is put.
        engine_dir: Where the engine is put.
        build_config: The options in use.
        config: The parsed configuration of the source; empty before `load`.

    Raises:
        ConfigurationError: `wait` is no time.

    Example:
        engine = MxTrtllmTargetLoader("llama-70b", "modelexpress-registry:8001", "/engines/llama-70b").load()
    """

    def __init__(
        self,
        model_name: str,
        mx_server: str | None = None,
        output_dir: Path | str | None = None,
        build_config: BuildConfig | None = None,
        *,
        wait: float | None = None,
        source_id: str | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings.read()
        self.model_name = model_name
        self.mx_server = registry_address(mx_server, self._settings)
        self.output_dir = Path(output_dir or self._settings.trtllm_output_dir)
        self.checkpoint_dir = self.output_dir / CHECKPOINT_NAME
        self.engine_dir = self.output_dir / ENGINE_NAME
        self.build_config = default_build_config(self._settings) | dict(build_config or {})
        self.config: dict[str, Any] = {}
        self.wait = _seconds(wait, self._settings)
        self._source_id = source_id
        self._progress = progress
        self._stats = _NOTHING

    def load(self, skip_build: bool = False) -> str:
        """Receive the checkpoint, build the engine, and return the path of the engine.

        Args:
            skip_build: Build nothing, and return the path of the checkpoint.

        Raises:
            TimeoutError: No source was found in time.
            FileNotFoundError: `trtllm-build` is not installed, which is found out before anything is received.
            LoadError: Several checkpoints have that name.
            CheckpointError: The disk is full or failed, another load writes to the same place, or no folder can be
                moved there.
            RuntimeError: The transfer failed, or `trtllm-build` did.
        """
        self._stats = _NOTHING
        builder = None if skip_build else find_builder()
        if builder is not None:
            StagingFolder(self.engine_dir, overwrite=True).check()
        published = await_published(self.mx_server, self.model_name, self._source_id, self.wait, self._settings)
        logger.info("%s: %d ranks from source %s", self.model_name, published.world_size, published.source_id)
        with Relays(self.mx_server, self.model_name, published, self._settings) as relays:
            self._receive(published, relays)
            if builder is None:
                return str(self.checkpoint_dir)
            return str(build_engine(builder, self.checkpoint_dir, self.engine_dir, self.build_config))

    def _receive(self, published: Published, relays: Relays) -> None:
        """Put the checkpoint in place."""
        with PartialFolder(self.output_dir, CHECKPOINT_NAME) as folder:
            receiving = Receiving(
                self.mx_server, self.model_name, published, folder, relays, self._settings, self._progress
            )
            try:
                received = receiving.run()
                relays.complete()
                self.config = _parsed(received.files)
                folder.commit(published.world_size, received.files)
            except NoSpace:
                # What lies there keeps others from the space, too. After other errors the next load goes on with it.
                folder.discard()
                raise
        self._stats = _stats(received)

    def get_transfer_stats(self) -> dict[str, float]:
        """Return what the last load moved: total_bytes, total_time in seconds, bandwidth_gbps in gigabits a second.

        All three are 0 until a load has received everything. Bytes that were in place before are not counted.
        """
        return dict(self._stats)


def create_trtllm_from_mx(
    model_name: str,
    mx_server: str | None = None,
    output_dir: Path | str | None = None,
    build_config: BuildConfig | None = None,
    skip_build: bool = False,
    *,
    wait: float | None = None,
    source_id: str | None = None,
) -> str:
    """Receive a checkpoint, build its engine, and return the path of the engine: `MxTrtllmTargetLoader` in one call.

    Args:
        model_name: As the source named it.
        mx_server: HOST:PORT of the registry; None takes it from the environment.
        output_dir: Gets the folders `checkpoint` and `engine`; None takes it from the environment.
        build_config: Options of `trtllm-build` that differ from the defaults.
        skip_build: Build nothing, and return the path of the checkpoint.
        wait: Seconds to wait for a source; 0 asks once.
        source_id: Which of several checkpoints of that name is meant.

    Raises:
        Exception: As `MxTrtllmTargetLoader.load` does.
    """
    loader = MxTrtllmTargetLoader(model_name, mx_server, output_dir, build_config, wait=wait, source_id=source_id)
    return loader.load(skip_build=skip_build)


def _seconds(wait: float | None, settings: Settings) -> float:
    if wait is None:
        said = "source_query_timeout" in settings.model_fields_set
        return settings.source_query_timeout if said else DEFAULT_WAIT
    if not 0 <= wait < math.inf:
        raise ConfigurationError(f"wait={wait!r} is no time to wait for a source: give seconds, 0 to ask once")
    return wait


def _parsed(files: Mapping[str, bytes]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(files[CONFIG_NAME])
    return config


def _stats(received: Received) -> dict[str, float]:
    rate = received.travelled_bytes * 8 / received.seconds / 1e9 if received.seconds else 0.0
    return {
        "total_bytes": received.travelled_bytes,
        "total_time": received.seconds,
        "bandwidth_gbps": rate,
    }
