"""Reading a Hugging Face-format checkpoint folder: its tensors, memory-mapped, and its side files."""

import mmap
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint_index import INDEX_NAME, check_index, read_index
from modelexpress.weights.safetensors_header import LENGTH_BYTES, parse_header
from modelexpress.weights.side_files import list_side_files
from modelexpress.weights.small_files import damaged, listed, open_regular, read_json_object
from modelexpress.weights.stored_tensor import StoredTensor

SINGLE_FILE = "model.safetensors"


class Checkpoint:
    """An open checkpoint folder. Build it with `Checkpoint.open`.

    Attributes:
        folder: The folder.
        config: The parsed config.json, empty where there is none.
        tensors: Every tensor by name, in the order of files and of bytes within them.

    Example:
        with Checkpoint.open(Path("llama")) as checkpoint:
            for name, tensor in checkpoint.tensors.items():
                print(name, tensor.dtype, tensor.shape, len(checkpoint.buffer(name)))
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, StoredTensor],
        maps: Mapping[Path, mmap.mmap],
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self._maps = dict(maps)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files of a checkpoint and check that they are complete and agree; no tensor is read.

        Which files count is decided as follows: those that `model.safetensors.index.json` names; without
        it, `model.safetensors`; without that, every `*.safetensors` file.

        Raises:
            CheckpointError: The folder or a file is missing, damaged or contradicts the others.
        """
        if not folder.is_dir():
            raise CheckpointError(f"there is no checkpoint folder {folder}; check the path")
        config = folder / "config.json"
        index = folder / INDEX_NAME
        weight_map = read_index(index) if index.exists() else None
        files = set(weight_map.values()) if weight_map is not None else _unindexed_files(folder)
        maps = {file: _map(folder / file) for file in sorted(files)}
        tensors = _merge(parse_header(content, file) for file, content in maps.items())
        if weight_map is not None:
            check_index(index, weight_map, tensors)
        return cls(folder, read_json_object(config) if config.exists() else {}, MappingProxyType(tensors), maps)

    def buffer(self, name: str) -> memoryview:
        """Return the bytes of a tensor: a read-only view of the mapped file, nothing is copied.

        The view stays usable after `close`. Whoever truncates the file meanwhile kills this process with
        SIGBUS; replace checkpoint files by renaming, never in place.

        Raises:
            KeyError: There is no tensor of this name.
            CheckpointError: The checkpoint is closed.
        """
        tensor = self.tensors[name]
        content = self._maps.get(tensor.file)
        if content is None:
            raise CheckpointError(f"the checkpoint {self.folder} is closed; open it again")
        return memoryview(content)[tensor.offset : tensor.offset + tensor.nbytes]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors together, without headers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def side_files(self) -> tuple[Path, ...]:
        """Configuration, tokenizer and template files, relative to the folder.

        Raises:
            CheckpointError: There are too many of them, or one is too large to be a side file.
        """
        return list_side_files(self.folder)

    def close(self) -> None:
        """Let go of the files; each stays mapped until the last view of it is gone."""
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unindexed_files(folder: Path) -> set[Path]:
    if (folder / SINGLE_FILE).exists():
        return {Path(SINGLE_FILE)}
    files = {path.relative_to(folder) for path in folder.glob("*.safetensors")}
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors file; convert the checkpoint to safetensors first")
    return files


def _map(path: Path) -> mmap.mmap:
    descriptor = open_regular(path)
    try:
        if os.fstat(descriptor).st_size < LENGTH_BYTES:
            raise damaged(path, "it is shorter than the length of a header")
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except OSError as error:
        raise CheckpointError(f"cannot map {path}: {error.strerror}; try another disk") from error
    finally:
        os.close(descriptor)


def _merge(files: Iterable[tuple[StoredTensor, ...]]) -> dict[str, StoredTensor]:
    merged: dict[str, StoredTensor] = {}
    for tensors in files:
        twice = [tensor.name for tensor in tensors if tensor.name in merged]
        if twice:
            both = {str(merged[twice[0]].file), str(tensors[0].file)}
            raise CheckpointError(
                f"{listed(both)} hold the same tensors: {listed(twice)}; remove the file that is not meant"
            )
        merged.update((tensor.name, tensor) for tensor in tensors)
    return merged
