"""The folder that a checkpoint is received into: it outlives an interrupted load, and the next one goes on there."""

import errno
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from modelexpress.engines.trtllm.config import rank_name
from modelexpress.engines.trtllm.errors import NoSpace
from modelexpress.errors import CheckpointError
from modelexpress.memory.file_backed import FileMapping, address_of, start_writing
from modelexpress.weights.folder_lock import lock_folder
from modelexpress.weights.staging_folder import StagingFolder, remove_abandoned

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, eq=False)
class MappedFile:
    """The file of one rank, mapped.

    Args:
        path: The file.
        content: All of it; not writable where it belongs to a checkpoint that is in place.
        used: It may hold what was received before.
    """

    path: Path
    content: mmap.mmap
    used: bool

    @property
    def address(self) -> int:
        """Where its first byte is mapped, as long as somebody holds `content`."""
        return address_of(self.content)

    def expect_writes(self) -> None:
        """Let pages be made one by one as they are filled.

        Otherwise the kernel reads ahead of every fault: it fills pages with zeros long before bytes arrive there, which
        takes 1.6 times the processor time of the whole load.
        """
        self.content.madvise(mmap.MADV_RANDOM)

    def write_out(self, start: int, end: int) -> None:
        """Let the disk begin with a range, which is complete: less is left to wait for at the end."""
        start_writing(self.address + start, end - start)

    def let_go(self, start: int, end: int) -> None:
        """Give the memory of a range back, to which nothing is written any more: its bytes stay in the file.

        Args:
            start: Of the range, a multiple of the page size.
            end: Of the range.
        """
        if end > start:
            self.content.madvise(mmap.MADV_DONTNEED, start, end - start)
            # Who reads it again goes on from there.
            self.content.madvise(mmap.MADV_NORMAL, start, end - start)

    def has_data(self, offset: int, nbytes: int) -> bool:
        """Return whether anything was ever written to a range of the file."""
        try:
            with self.path.open("rb") as file:
                return os.lseek(file.fileno(), offset, os.SEEK_DATA) < offset + nbytes
        except OSError as error:
            return error.errno != errno.ENXIO  # nothing but a hole follows; other file systems cannot tell


class PartialFolder:
    """A hidden folder beside the checkpoint, used by one load at a time where folders can be locked.

    Whatever the moment at which a load is killed, every byte that was received is in it, or in the checkpoint in place.

    Args:
        output: Where the checkpoint's folder is to be.
        name: Of the checkpoint's folder.

    Attributes:
        path: The hidden folder.

    Raises:
        CheckpointError: On entering: it cannot be created, another load uses it, or no folder can be moved to the
            checkpoint's place.
    """

    def __init__(self, output: Path, name: str) -> None:
        # A link to a folder is followed, so that everything is on the file system that it leads to.
        self._target = Path(os.path.realpath(output / name))
        self.path = self._target.with_name(partial_name(self._target.name))
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            StagingFolder(self._target, overwrite=True).check()
            self._lock = self._create()
            # A load that was killed while it put a checkpoint in place has left second names of files that are here.
            remove_abandoned(self._target.parent)
        except BlockingIOError:
            raise CheckpointError(f"another load writes into {self.path.parent}: name another output folder") from None
        except OSError as error:
            raise CheckpointError(f"cannot create {self.path}: {error.strerror}; choose another folder") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def discard(self) -> None:
        """Remove it with all that was received."""
        shutil.rmtree(self.path, ignore_errors=True)

    def kept(self, rank: int, header: bytes, nbytes: int) -> MappedFile | None:
        """Return the file that an interrupted load left, if it is of the same rank file; None without one.

        Args:
            rank: Which file is meant.
            header: Its first bytes.
            nbytes: Of the whole file.

        Raises:
            CheckpointError: It is there and cannot be mapped.
        """
        path = self.path / rank_name(rank)
        # With a second name it is also part of a checkpoint that is in place, which must not be written to.
        found = _stat_of(path, header, nbytes)
        if found is None or found.st_nlink > 1:
            return None
        return MappedFile(path, _map(path, nbytes, writable=True), used=True)

    def in_place(self, rank: int, header: bytes, nbytes: int) -> Iterator[MappedFile]:
        """Yield files that may be the same, to be compared: they belong to a checkpoint that is in place.

        Raises:
            CheckpointError: One is there and cannot be mapped.
        """
        here = self.path / rank_name(rank)
        for path in (self._target / rank_name(rank), here):
            found = _stat_of(path, header, nbytes)
            # Here alone: the second name is in a folder that could not be removed, where folders cannot be locked.
            if found is not None and (path != here or found.st_nlink > 1):
                yield MappedFile(path, _map(path, nbytes, writable=False), used=True)

    def adopt(self, rank: int, file: MappedFile) -> bool:
        """Take a file of the checkpoint that is in place as it is; return whether the file system can do that."""
        path = self.path / rank_name(rank)
        if file.path == path:
            return True
        try:
            path.unlink(missing_ok=True)
            os.link(file.path, path)
        except OSError:
            return False
        return True

    def create(self, rank: int, header: bytes, nbytes: int) -> MappedFile:
        """Return a new file with all its disk space reserved, so that a full disk is found before anything arrives.

        Raises:
            NoSpace: The disk is full, or a limit is reached.
            CheckpointError: The folder cannot be written to.
        """
        path = self.path / rank_name(rank)
        try:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                # A write to a mapping has no way to report a full disk but SIGBUS.
                os.posix_fallocate(descriptor, 0, nbytes)
                os.pwrite(descriptor, header, 0)
            finally:
                os.close(descriptor)
            return MappedFile(path, _map(path, nbytes, writable=True), used=False)
        except OSError as error:
            raise self._cannot_write(rank, nbytes, error) from error

    def commit(self, world_size: int, files: Mapping[str, bytes]) -> Path:
        """Put what was received in place, and return the path of the checkpoint.

        Args:
            world_size: Number of ranks, all of which are complete and durable.
            files: What belongs beside them, by path.

        Raises:
            CheckpointError: The disk failed or is full, or the place is occupied; what was received stays here.
        """
        names = [rank_name(rank) for rank in range(world_size)]
        with StagingFolder(self._target, overwrite=True) as staging:
            try:
                for path, content in files.items():
                    (staging.path / path).parent.mkdir(parents=True, exist_ok=True)
                    (staging.path / path).write_bytes(content)
                for name in names:
                    _put(self.path / name, staging.path / name)
                staging.publish()
            except BaseException as error:  # Ctrl-C, too, must not throw away what was received; it is raised again
                self._take_back(staging.path, names)
                if isinstance(error, OSError):
                    raise CheckpointError(f"cannot complete {self._target}: {error.strerror}; try again") from error
                raise
        self.discard()
        return self._target

    def _create(self) -> int:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            # A load that ends removes the folder: then its lock is nobody's, and the next folder has another.
            if (lock := lock_folder(self.path)) is not None:
                return lock

    def _take_back(self, staging: Path, names: Iterable[str]) -> None:
        for name in names:
            if (self.path / name).exists():
                continue
            with suppress(OSError):  # it never left, or lies where the checkpoint belongs already
                (staging / name).rename(self.path / name)

    def _cannot_write(self, rank: int, nbytes: int, error: OSError) -> CheckpointError:
        if error.errno not in _NO_SPACE:
            return CheckpointError(f"cannot write in {self.path}: {error.strerror}; choose another folder")
        disk = os.statvfs(self.path)
        return NoSpace(
            f"rank {rank} needs {nbytes} bytes in {self.path}, where {disk.f_bavail * disk.f_frsize} are available: "
            f"{error.strerror}; free space, raise the limit, or choose another disk"
        )


def partial_name(name: str) -> str:
    """Return the name of the hidden folder beside a checkpoint's folder of a name."""
    return f".{name}-partial"


def make_durable(path: Path) -> None:
    """Wait until a file is on disk.

    Raises:
        CheckpointError: The disk failed; the file is removed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        with suppress(OSError):
            # In memory it still looks right, and a second attempt would report success: nobody may go on with it.
            path.unlink()
        raise CheckpointError(f"the disk of {path} failed: {error.strerror}") from error


def _put(received: Path, place: Path) -> None:
    """Give a file a second name, so that a kill loses neither; move it where the file system knows no second names."""
    try:
        place.hardlink_to(received)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        received.rename(place)


def _stat_of(path: Path, header: bytes, nbytes: int) -> os.stat_result | None:
    """Return what is known of a file of that size that begins with the header; None: there is no such file."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            return found if found.st_size == nbytes and file.read(len(header)) == header else None
    except OSError:
        return None


def _map(path: Path, nbytes: int, *, writable: bool) -> mmap.mmap:
    try:
        if writable:
            return FileMapping(path, nbytes)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), nbytes, prot=mmap.PROT_READ)
    except OSError as error:
        raise CheckpointError(f"cannot map {path}: {error.strerror}; remove it, or choose another folder") from error
