"""The index of a sharded checkpoint: which file holds which tensor.

Format: the JSON that transformers writes next to the shards, `{"metadata": {"total_size": bytes},
"weight_map": {tensor name: file name}}`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from modelexpress.errors import CheckpointError
from modelexpress.weights.side_files import is_inside
from modelexpress.weights.small_files import damaged, listed, read_json_object
from modelexpress.weights.stored_tensor import StoredTensor

INDEX_NAME = "model.safetensors.index.json"


def read_index(path: Path) -> Mapping[str, Path]:
    """Return the file of each tensor, relative to the checkpoint folder.

    Raises:
        CheckpointError: The index cannot be read, or names a file outside its folder.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(path, "it has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise damaged(path, f"the file of tensor {name!r:.200} is no string")
        if not is_inside(file):
            raise CheckpointError(
                f"{path} places tensor {name!r:.200} into {file!r:.200}, which is no file inside the folder; "
                "do not load this checkpoint unless you know who wrote it"
            )
    return {name: Path(file) for name, file in weight_map.items()}


def build_index(tensors: Iterable[StoredTensor]) -> bytes:
    """Return the index of a checkpoint with these tensors."""
    files = {tensor.name: tensor for tensor in tensors}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in files.values())},
        "weight_map": {name: str(files[name].file) for name in sorted(files)},
    }
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"


def check_index(path: Path, weight_map: Mapping[str, Path], tensors: Mapping[str, StoredTensor]) -> None:
    """Check that the index at `path` and the shards agree, both ways.

    Raises:
        CheckpointError: A tensor is listed and not there, or there and not listed; it is named.
    """
    missing = [name for name, file in weight_map.items() if name not in tensors or tensors[name].file != file]
    if missing:
        raise CheckpointError(
            f"{path} lists tensors that their shards do not hold: {listed(missing)}; "
            "index and shards are of different checkpoints: fetch the folder again"
        )
    unlisted = tensors.keys() - weight_map.keys()
    if unlisted:
        files = {str(tensors[name].file) for name in unlisted}
        raise CheckpointError(
            f"{path} does not list tensors that {listed(files)} hold: {listed(unlisted)}; "
            "index and shards are of different checkpoints: fetch the folder again"
        )
