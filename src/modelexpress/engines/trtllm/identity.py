"""Which published checkpoints are the same: the identity that all ranks of one checkpoint share."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from modelexpress.engines.trtllm.config import MOST_RANKS, CheckpointConfig
from modelexpress.engines.trtllm.rank_memory import CONTENT_CHUNK_BYTES, RankMemory
from modelexpress.identity import BackendFramework, SourceIdentity

LAYOUT_KEY = "trtllm_weight_layout"
LAYOUT = "checkpoint"
WORLD_SIZE_KEY = "trtllm_world_size"
CONTENT_KEY = "trtllm_content"

_MOST_SAID = 60
_HEADER_NAME = re.compile(r"rank\d+\.header\.json")


def header_name(rank: int) -> str:
    """Return the path under which a rank's source offers the header of its file, without the length before it."""
    return f"rank{rank}.header.json"


def is_header_name(path: str) -> bool:
    """Return whether a path is one that `header_name` returns."""
    return _HEADER_NAME.fullmatch(path) is not None


def checkpoint_identity(
    model_name: str, config: CheckpointConfig, memories: Iterable[RankMemory], revision: str
) -> SourceIdentity:
    """Return the identity of a checkpoint.

    Its content is part of it: ranks of two conversions under one name are never put together.

    Args:
        model_name: As targets ask for it.
        config: Of the checkpoint.
        memories: Its ranks, in order.
        revision: As MX_MODEL_REVISION names it.
    """
    return SourceIdentity(
        model_name=model_name,
        backend_framework=BackendFramework.TRT_LLM,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.pipeline_parallel_size,
        dtype=config.dtype,
        quantization=config.quantization,
        revision=revision,
        extra_parameters={
            LAYOUT_KEY: LAYOUT,
            WORLD_SIZE_KEY: str(config.world_size),
            CONTENT_KEY: _content(memories),
        },
    )


def world_size_of(identity: SourceIdentity) -> int | None:
    """Return the number of ranks of a published checkpoint; None where the identity is of something else."""
    said: Mapping[str, str] = identity.extra_parameters
    if identity.backend_framework is not BackendFramework.TRT_LLM or said.get(LAYOUT_KEY) != LAYOUT:
        return None
    size = said.get(WORLD_SIZE_KEY, "")
    # Anybody may publish anything: thousands of digits are no number to Python, and thousands of ranks no checkpoint.
    if not (size.isascii() and size.isdigit() and len(size) <= len(str(MOST_RANKS))):
        return None
    return int(size) if 1 <= int(size) <= MOST_RANKS else None


def described(identity: SourceIdentity) -> str:
    """Return in a few words what a published checkpoint is, to tell it from others of the same name."""
    tensor, pipeline = identity.tensor_parallel_size, identity.pipeline_parallel_size
    ranks = world_size_of(identity) or 0
    sizes = f"{ranks} rank{'s' * (ranks != 1)}: tp {tensor}, pp {pipeline}"
    if tensor * pipeline and ranks > tensor * pipeline:
        sizes += f", cp {ranks // (tensor * pipeline)}"
    revision = identity.revision and f"revision {identity.revision}"
    return ", ".join(part[:_MOST_SAID] for part in (sizes, identity.dtype, identity.quantization, revision) if part)


def _content(memories: Iterable[RankMemory]) -> str:
    digest = hashlib.sha256()
    for memory in memories:
        # Both decide what a rank's file is: its header, which is among the files, and the digests of its tensors.
        for file in memory.manifest.files:
            digest.update(f"{file.path}\0{file.sha256}\0".encode())
        digest.update(f"{CONTENT_CHUNK_BYTES}\0{len(memory.content)}\0".encode())
        digest.update(memory.content.tobytes())
    return digest.hexdigest()[:32]
