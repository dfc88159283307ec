"""Writing a checkpoint folder whose tensors arrive straight in its memory-mapped files."""

import ctypes
import errno
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint_index import INDEX_NAME, build_index
from modelexpress.weights.shard_layout import Shard, plan_shards
from modelexpress.weights.side_files import check_side_paths
from modelexpress.weights.staging_folder import StagingFolder
from modelexpress.weights.stored_tensor import TensorEntry

DEFAULT_SHARD_BYTES = 5 * 10**9  # what the Hugging Face libraries have long cut at

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointWriter:
    """A checkpoint folder in the making, which appears at `out` when `commit` is called, or never.

    Entering reserves all disk space, so that a full disk is found before anything is received, and maps
    the files. Leaving without `commit`, for whatever reason, removes everything that was written.

    Args:
        out: The folder to create.
        tensors: What the checkpoint shall hold; neighbours stay neighbours in the files.
        side_files: Content by path relative to `out`: configuration, tokenizer, templates.
        shard_bytes: Bytes of tensors in one file at most; a larger tensor gets a file of its own.
        overwrite: Replace a folder that is there, instead of refusing.

    Raises:
        CheckpointError: A tensor or a side file cannot be stored; on entering: `out` is occupied or the disk
            is full.

    Example:
        with CheckpointWriter(Path("copy"), tensors, {"config.json": config}) as writer:
            for tensor in tensors:
                writer.buffer(tensor.name)[:] = receive(tensor)
            writer.commit()
    """

    def __init__(
        self,
        out: Path,
        tensors: Sequence[TensorEntry],
        side_files: Mapping[str, bytes],
        *,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        self._shards = plan_shards(tensors, shard_bytes)
        self._places = {tensor.name: tensor for shard in self._shards for tensor in shard.tensors}
        check_side_paths(side_files)
        self._files = dict(side_files)
        if len(self._shards) > 1:
            self._files[INDEX_NAME] = build_index(self._places.values())
        self._staging = StagingFolder(out, overwrite=overwrite)
        self._maps: dict[Path, mmap.mmap] = {}
        self._exit = ExitStack()

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(shard.nbytes for shard in self._shards) + sum(map(len, self._files.values()))

    def buffer(self, name: str) -> memoryview:
        """Return the writable bytes of a tensor in its file.

        Raises:
            KeyError: There is no tensor of this name.
        """
        tensor = self._places[name]
        return memoryview(self._maps[tensor.file])[tensor.offset : tensor.offset + tensor.nbytes]

    def address(self, name: str) -> int:
        """Return where the tensor's first byte is mapped, valid inside the `with` block.

        Raises:
            KeyError: There is no tensor of this name.
        """
        tensor = self._places[name]
        return ctypes.addressof(ctypes.c_char.from_buffer(self._maps[tensor.file], 0)) + tensor.offset

    def commit(self) -> Path:
        """Make every byte durable, move the folder into place, and return its path.

        Raises:
            CheckpointError: The disk failed, or `out` has been occupied meanwhile.
        """
        try:
            for mapped in self._maps.values():
                mapped.flush()
        except OSError as error:
            raise CheckpointError(f"the disk of {self._staging.path} failed: {error.strerror}") from error
        return self._staging.publish()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._staging)
            # A mapping lives on while anybody holds a view of it; letting go is all that is possible here.
            stack.callback(self._maps.clear)
            try:
                for shard in self._shards:
                    self._maps[shard.file] = _allocate(self._staging.path, shard)
                for path, content in self._files.items():
                    _write(self._staging.path / path, content)
            except OSError as error:
                raise self._cannot_write(error) from error
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _cannot_write(self, error: OSError) -> CheckpointError:
        parent = self._staging.path.parent
        if error.errno not in _NO_SPACE:
            return CheckpointError(f"cannot write in {parent}: {error.strerror}; choose another folder")
        disk = os.statvfs(parent)
        return CheckpointError(
            f"the checkpoint needs {self.disk_bytes} bytes in {parent}, where "
            f"{disk.f_bavail * disk.f_frsize} are available: {error.strerror}; "
            "free space, raise the limit, or choose another disk"
        )


def _allocate(folder: Path, shard: Shard) -> mmap.mmap:
    descriptor = os.open(folder / shard.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        # A write to a mapping has no way to report a full disk but SIGBUS, so every block is reserved first.
        os.posix_fallocate(descriptor, 0, shard.nbytes)
        os.pwrite(descriptor, shard.header, 0)
        return mmap.mmap(descriptor, shard.nbytes)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
