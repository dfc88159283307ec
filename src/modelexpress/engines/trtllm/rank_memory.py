"""The file of one rank in memory, as a worker offers it."""

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modelexpress.errors import CheckpointError
from modelexpress.memory import HostArena
from modelexpress.memory.file_backed import send
from modelexpress.peer import file_specs
from modelexpress.transfer.manifest import Digests, Manifest, Scope, contiguous_strides
from modelexpress.transfer.seal import seal
from modelexpress.weights.safetensors_header import LENGTH_BYTES, parse_header
from modelexpress.weights.small_files import damaged, open_regular
from modelexpress.wire.records import TensorSpec

CONTENT_CHUNK_BYTES = 64 << 20
"""What is compared of checkpoints: those of sources that cut them in other chunks are the same."""

_PIECE_BYTES = 16 << 20

Advance = Callable[[int], None]
"""Told how many more bytes have been read."""

FileState = tuple[int, int, int]
"""Inode, size, and time of the last write: a file that follows another under its path differs, or one written to."""


@dataclass(frozen=True)
class RankMemory:
    """The tensors of one rank, as they lie in its file: what is behind the header, in one piece.

    Args:
        arena: Holds them.
        manifest: Lists them.
        content: Digests of the tensors in chunks of `CONTENT_CHUNK_BYTES`, whatever the manifest's chunks are.
        files: What belongs to them, by path: configuration, and the header of the file.
    """

    arena: HostArena
    manifest: Manifest
    content: Digests
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class RankFile:
    """The file of a rank, looked at, not read.

    Args:
        path: The file.
        header: Its first bytes, up to the first tensor.
        tensors: What it holds, in the order of the bytes; their offsets count from the first tensor.
        nbytes: Of all tensors together.
        state: Of the file when it was looked at.
    """

    path: Path
    header: bytes
    tensors: tuple[TensorSpec, ...]
    nbytes: int
    state: FileState

    @classmethod
    def open(cls, path: Path) -> "RankFile":
        """Read the header of a file and check it.

        Raises:
            CheckpointError: The file is damaged, or holds a dtype that is not known here.
        """
        descriptor = open_regular(path)
        try:
            state = _state(descriptor)
            size = os.fstat(descriptor).st_size
            if size < LENGTH_BYTES:
                raise damaged(path, "it is shorter than the length of a header")
            with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as content:
                stored = parse_header(content, path)
                start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
                header = content[:start]
        finally:
            os.close(descriptor)
        specs = [
            TensorSpec(t.name, t.dtype, t.shape, contiguous_strides(t.shape), 0, t.offset - start, t.nbytes)
            for t in stored
        ]
        return cls(path, header, tuple(specs), size - start, state)

    def read(self, files: Mapping[str, bytes], chunk_bytes: int, advance: Advance) -> RankMemory:
        """Read the tensors into memory and seal them.

        Args:
            files: What belongs to them, by path.
            chunk_bytes: Of what has a digest of its own.
            advance: Told the bytes read.

        Raises:
            CheckpointError: The file cannot be read, or is not what it was when it was looked at.
        """
        descriptor = open_regular(self.path)
        try:
            # The path may lead to another file by now, whose tensors the header is not about.
            self._check_unchanged(descriptor)
            arena = HostArena(self.nbytes, fill=partial(_fill, self.nbytes, descriptor, len(self.header), advance))
            self._check_unchanged(descriptor)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}; try another disk") from error
        except EOFError:
            raise self._changed() from None
        finally:
            os.close(descriptor)
        manifest = self._sealed(arena, chunk_bytes, files)
        same = chunk_bytes == CONTENT_CHUNK_BYTES
        content = manifest if same else self._sealed(arena, CONTENT_CHUNK_BYTES, {})
        return RankMemory(arena, manifest, content.digests, files)

    def _sealed(self, arena: HostArena, chunk_bytes: int, files: Mapping[str, bytes]) -> Manifest:
        specs = file_specs(files)
        return seal(self.tensors, [arena.region], scope=Scope.CHECKPOINT, chunk_bytes=chunk_bytes, files=specs)

    def _check_unchanged(self, descriptor: int) -> None:
        if _state(descriptor) != self.state:
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: it changed while it was read; publish it when it is complete")


def _state(descriptor: int) -> FileState:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _fill(nbytes: int, descriptor: int, start: int, advance: Advance, out: int) -> None:
    done = 0
    while done < nbytes:
        # Never mapped: a file that somebody truncates must not end this process with SIGBUS.
        count = send(out, done, descriptor, start + done, min(_PIECE_BYTES, nbytes - done))
        if count == 0:
            raise EOFError
        done += count
        advance(count)
