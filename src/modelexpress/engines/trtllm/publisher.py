"""The source: a checkpoint folder in memory, published with one worker for each rank."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelexpress.engines.trtllm.amount import amount
from modelexpress.engines.trtllm.config import CONFIG_NAME, CheckpointConfig, rank_paths, read_config
from modelexpress.engines.trtllm.identity import checkpoint_identity, header_name, is_header_name
from modelexpress.engines.trtllm.rank_memory import Advance, RankFile, RankMemory
from modelexpress.engines.trtllm.rank_worker import rank_worker
from modelexpress.engines.trtllm.registry_address import registry_address
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Material, Publication
from modelexpress.settings import Settings
from modelexpress.weights.offering import read_files
from modelexpress.weights.report import Progress
from modelexpress.weights.safetensors_header import LENGTH_BYTES

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 4


class MxTrtllmSourcePublisher:
    """Serves a checkpoint folder that `convert_checkpoint` made, from memory, until `shutdown`.

    Args:
        checkpoint_dir: Holds config.json and a file rankN.safetensors for every rank.
        model_name: The name under which targets ask for it.
        mx_server: HOST:PORT of the registry, also with http:// before it; None takes it from the environment.
        progress: Told the bytes read and the bytes in all.
        settings: Read from the environment when None.

    Attributes:
        config: The parsed config.json; empty before `initialize`.

    Example:
        with MxTrtllmSourcePublisher("/models/llama-70b", "llama-70b", "modelexpress-registry:8001"):
            wait_until_told_to_stop()
    """

    def __init__(
        self,
        checkpoint_dir: Path | str,
        model_name: str,
        mx_server: str | None = None,
        *,
        progress: Progress | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings.read()
        self.checkpoint_dir = Path(checkpoint_dir)
        self.model_name = model_name
        self.mx_server = registry_address(mx_server, self._settings)
        self.config: dict[str, Any] = {}
        self._progress = progress
        self._publications: list[Publication] = []
        self._workers = ExitStack()

    @property
    def publications(self) -> tuple[Publication, ...]:
        """One for each rank, in order; none before `initialize` and after `shutdown`."""
        return tuple(self._publications)

    def initialize(self) -> None:
        """Read the checkpoint into memory and publish every rank. A second call does nothing.

        A registry that does not answer is waited for a moment; it is told later, when it is there.

        Raises:
            FileNotFoundError: The configuration or the file of a rank is missing.
            CheckpointError: A file is damaged, or holds a dtype that is not known.
            ConfigurationError: A worker server cannot listen.
        """
        if self._publications:
            logger.info("%s is published already", self.model_name)
            return
        started = time.perf_counter()
        config = read_config(self.checkpoint_dir)
        memories = self._read(config)
        identity = checkpoint_identity(self.model_name, config, memories, self._settings.model_revision)
        self.config = dict(config.fields)
        with ExitStack() as undo:
            publications = [self._publish(undo, identity, rank, memory) for rank, memory in enumerate(memories)]
            self._workers = undo.pop_all()
        self._publications = publications
        self._say_ready(memories, time.perf_counter() - started)

    def wait_ready(self, timeout: float) -> bool:
        """Wait until the registry lists every rank; return whether it does after `timeout` seconds."""
        end = time.monotonic() + timeout
        return all(each.wait_ready(max(end - time.monotonic(), 0)) for each in self._publications)

    def shutdown(self) -> None:
        """Withdraw every rank and free its memory. Calling it twice is allowed."""
        self._workers.close()
        if self._publications:
            logger.info("%s is withdrawn", self.model_name)
        self._publications = []

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _read(self, config: CheckpointConfig) -> list[RankMemory]:
        paths = rank_paths(self.checkpoint_dir, config.world_size)
        ranks = [RankFile.open(path) for path in paths]
        side = {path: data for path, data in read_files(self.checkpoint_dir).items() if not is_header_name(path)}
        side[CONFIG_NAME] = config.content
        advance = _sum_up(self._progress, sum(each.nbytes for each in ranks))

        def read(rank: int) -> RankMemory:
            file = ranks[rank]
            started = time.perf_counter()
            files = {header_name(rank): file.header[LENGTH_BYTES:]} | (side if rank == 0 else {})
            memory = file.read(files, self._settings.chunk_bytes, advance)
            seconds = time.perf_counter() - started
            logger.info("rank %d: %s read from %s", rank, amount(len(file.tensors), file.nbytes, seconds), file.path)
            return memory

        with ThreadPoolExecutor(min(len(ranks), _READ_AT_ONCE), thread_name_prefix="mx-trtllm-read") as pool:
            return list(pool.map(read, range(len(ranks))))

    def _publish(self, undo: ExitStack, identity: SourceIdentity, rank: int, memory: RankMemory) -> Publication:
        worker = undo.enter_context(rank_worker(self.mx_server, rank, self._settings))
        arena = memory.arena
        return worker.publish(Material(identity, rank, memory.manifest, (arena.region,), (arena,), memory.files))

    def _say_ready(self, memories: Sequence[RankMemory], seconds: float) -> None:
        tensors = sum(len(memory.manifest) for memory in memories)
        nbytes = sum(memory.manifest.total_bytes for memory in memories)
        what = f"{self.model_name}: {len(memories)} ranks, {amount(tensors, nbytes, seconds)}"
        if self.wait_ready(self._settings.source_query_timeout):
            logger.info("%s, published as source %s", what, self._publications[0].source_id)
        else:
            logger.warning("%s, but the registry at %s has not taken it yet: it is tried on", what, self.mx_server)


def _sum_up(progress: Progress | None, total: int) -> Advance:
    lock = threading.Lock()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        if progress is not None:
            with lock:
                done += count
                progress(done, total)

    return advance
