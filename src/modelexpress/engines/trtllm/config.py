"""A TensorRT-LLM checkpoint folder: its configuration, kept byte for byte, and the files of its ranks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelexpress.engines.trtllm.errors import CheckpointFileMissing
from modelexpress.errors import CheckpointError
from modelexpress.weights.side_files import read_side_file
from modelexpress.weights.small_files import damaged, listed, parse_json_object

CONFIG_NAME = "config.json"

MOST_RANKS = 4096
"""No checkpoint has more."""

_RANK_NAME = re.compile(r"rank(\d+)\.safetensors", re.ASCII)


@dataclass(frozen=True)
class CheckpointConfig:
    """What the configuration of a checkpoint says.

    Args:
        content: The file as it is.
        fields: The same, parsed.
        world_size: Number of ranks, each with a file of its own.
        tensor_parallel_size: Ranks that share one layer.
        pipeline_parallel_size: Groups of ranks that hold different layers.
        dtype: Of the weights that are not quantised.
        quantization: The algorithm, or "".
    """

    content: bytes
    fields: Mapping[str, Any]
    world_size: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    dtype: str
    quantization: str

    @classmethod
    def parse(cls, content: bytes, path: Path) -> "CheckpointConfig":
        """Return what a configuration says.

        Args:
            content: Of the file.
            path: Of the file, for messages.

        Raises:
            CheckpointError: It is no JSON object, or its mapping is not possible.
        """
        fields = parse_json_object(content, path)
        mapping = _object(fields, "mapping", path)
        tensor, pipeline, context = (_size(mapping, name, 1, path) for name in ("tp_size", "pp_size", "cp_size"))
        product = tensor * pipeline * context
        world = _size(mapping, "world_size", product, path)
        if world != product:
            raise CheckpointError(
                f"{path} has the world_size {world}, but tp_size, pp_size and cp_size make {product}: convert it again"
            )
        quantization = _object(fields, "quantization", path).get("quant_algo") or ""
        return cls(content, fields, world, tensor, pipeline, str(fields.get("dtype") or ""), str(quantization))


def read_config(folder: Path) -> CheckpointConfig:
    """Return the configuration of a checkpoint folder.

    Raises:
        CheckpointFileMissing: There is none.
        CheckpointError: It cannot be read.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise CheckpointFileMissing(f"Config not found: {path}; name a folder that convert_checkpoint made")
    return CheckpointConfig.parse(read_side_file(path), path)


def rank_name(rank: int) -> str:
    """Return the name of the file that holds a rank's weights."""
    return f"rank{rank}.safetensors"


def rank_paths(folder: Path, world_size: int) -> tuple[Path, ...]:
    """Return the file of every rank.

    Raises:
        CheckpointFileMissing: A file is not there.
        CheckpointError: There are files of ranks that the configuration does not count.
    """
    paths = tuple(folder / rank_name(rank) for rank in range(world_size))
    for path in paths:
        if not path.exists():
            raise CheckpointFileMissing(
                f"Weights not found: {path}; {CONFIG_NAME} asks for {world_size} ranks: convert the checkpoint again"
            )
    found = (_RANK_NAME.fullmatch(path.name) for path in folder.iterdir())
    surplus = [name[0] for name in found if name and int(name[1]) >= world_size]
    if surplus:
        raise CheckpointError(
            f"{folder} has {listed(surplus)} beside the {world_size} ranks of {CONFIG_NAME}: "
            "convert the checkpoint again, into an empty folder"
        )
    return paths


def _object(fields: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise damaged(path, f"{name} is no object")
    return value


def _size(mapping: Mapping[str, Any], name: str, default: int, path: Path) -> int:
    value = mapping.get(name, default)
    if type(value) is not int or not 1 <= value <= MOST_RANKS:
        raise CheckpointError(
            f"{path} has the {name} {value!r:.50}, which must be a number from 1 to {MOST_RANKS}: convert it again"
        )
    return value
