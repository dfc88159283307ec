"""The sealed manifest of a cache artifact: which files, cut into which chunks, with a checksum for each.

A path of a manifest begins with `/`, and that is the root of the cache, wherever a host keeps it. The rules of the
format are in the wire protocol's "Sealed file manifests"; a manifest that breaks one cannot be made.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from modelexpress.errors import ArtifactInvalid
from modelexpress.identity import SourceType

VERSION = 1
MAX_CHUNK_BYTES = 4 << 30
MAX_FILES = 1 << 18
MAX_CHUNKS = 1 << 20
MAX_TOTAL_BYTES = 1 << 40
MAX_PATH_BYTES = 3_072
"""Below PATH_MAX of Linux, 4,096, by what the path of a cache's root may take."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux's file systems."""
MAX_JSON_BYTES = 1 << 30

_NOTHING = "00000000"  # the CRC32C of no bytes
_CHECKSUM = re.compile(r"[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file: its place in the list, its path below the cache's root, its bytes and their CRC32C."""

    index: int
    path: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """A range of one file, `length` bytes from `offset`, and its CRC32C."""

    index: int
    file_index: int
    offset: int
    length: int
    checksum: str


@dataclass(frozen=True)
class SealedManifest:
    """Everything that a target must know about an artifact before it asks for a byte of it.

    Args:
        source_type: What kind of cache it is.
        chunk_size: No chunk is larger; bytes.
        files: Sorted by path.
        chunks: In the order of the files, each file from its beginning to its end; an empty file has none.
        version: Of the format; only 1 is known.

    Raises:
        ArtifactInvalid: It breaks a rule of the format. Names the first part that does.
    """

    source_type: SourceType
    chunk_size: int
    files: tuple[SealedFile, ...]
    chunks: tuple[SealedChunk, ...]
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_header(self)
        _check_files(self.files)
        _check_chunks(self)

    @cached_property
    def artifact_id(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @cached_property
    def total_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.size for file in self.files)

    def canonical_json(self) -> bytes:
        """Return the only JSON text that stands for this manifest, as UTF-8."""
        files = [
            {"file_index": file.index, "path": file.path, "size": file.size, "checksum": file.checksum}
            for file in self.files
        ]
        chunks = [
            {
                "chunk_index": chunk.index,
                "file_index": chunk.file_index,
                "file_offset": chunk.offset,
                "length": chunk.length,
                "checksum": chunk.checksum,
            }
            for chunk in self.chunks
        ]
        manifest = {
            "manifest_version": self.version,
            "mx_source_type": int(self.source_type),
            "chunk_size": self.chunk_size,
            "files": files,
            "chunks": chunks,
        }
        return json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "SealedManifest":
        """Return the manifest whose canonical JSON is `data`.

        Any other way to write the same manifest is refused: what was hashed and signed is what is read.

        Raises:
            ArtifactInvalid: The bytes are no canonical JSON of a valid manifest.
        """
        if len(data) > MAX_JSON_BYTES:
            raise ArtifactInvalid(f"a manifest of {len(data)} bytes is refused; at most {MAX_JSON_BYTES} are read")
        try:
            manifest = _parsed(json.loads(data.decode("utf-8")))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtifactInvalid(f"the manifest cannot be read: {error!r:.200}; seal the cache again") from error
        if manifest.canonical_json() != data:
            raise ArtifactInvalid("the manifest is not in its canonical form; seal the cache again")
        # Known already: these are the bytes that are hashed.
        manifest.__dict__["artifact_id"] = hashlib.sha256(data).hexdigest()
        return manifest


def is_sealable(path: str) -> bool:
    """Return whether a path can stand in a manifest: from `/`, without ways out, and readable by everybody."""
    # Unprintable are NUL, terminal controls and half surrogate pairs: each breaks some reader of a path.
    if not path.startswith("/") or "\\" in path or not path.isprintable():
        return False
    names = path[1:].split("/")
    if {"", ".", ".."}.intersection(names) or len(path.encode()) > MAX_PATH_BYTES:
        return False
    return all(len(name.encode()) <= MAX_NAME_BYTES for name in names)


def _parsed(value: Any) -> SealedManifest:
    return SealedManifest(
        source_type=value["mx_source_type"],
        chunk_size=value["chunk_size"],
        files=tuple(SealedFile(f["file_index"], f["path"], f["size"], f["checksum"]) for f in value["files"]),
        chunks=tuple(
            SealedChunk(c["chunk_index"], c["file_index"], c["file_offset"], c["length"], c["checksum"])
            for c in value["chunks"]
        ),
        version=value["manifest_version"],
    )


def _check_header(manifest: SealedManifest) -> None:
    if not _is_count(manifest.version) or manifest.version != VERSION:
        raise _invalid(f"version {manifest.version!r:.50} is not known; this package reads version {VERSION}")
    if not _is_count(manifest.source_type) or manifest.source_type not in set(SourceType):
        raise _invalid(f"source type {manifest.source_type!r:.50} is not known")
    object.__setattr__(manifest, "source_type", SourceType(manifest.source_type))
    if not _is_count(manifest.chunk_size) or not 0 < manifest.chunk_size <= MAX_CHUNK_BYTES:
        raise _invalid(f"chunks of {manifest.chunk_size!r:.50} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
    for what, parts, limit in (("files", manifest.files, MAX_FILES), ("chunks", manifest.chunks, MAX_CHUNKS)):
        if len(parts) > limit:
            raise _invalid(f"it lists {len(parts)} {what}; at most {limit} are allowed")


def _check_files(files: Sequence[SealedFile]) -> None:
    for position, file in enumerate(files):
        where = f"file {position}"
        if not _is_count(file.index) or file.index != position:
            raise _invalid(f"{where} has index {file.index!r:.50}")
        if not isinstance(file.path, str) or not is_sealable(file.path):
            raise _invalid(f"{where} has the path {file.path!r:.200}, which is not allowed")
        if not _is_count(file.size) or file.size > MAX_TOTAL_BYTES:
            raise _invalid(f"{where} has {file.size!r:.50} bytes; at most {MAX_TOTAL_BYTES} are allowed")
        _check_checksum(file.checksum, where)
    if sum(file.size for file in files) > MAX_TOTAL_BYTES:
        raise _invalid(f"its files have more than {MAX_TOTAL_BYTES} bytes together")
    for before, after in pairwise(files):
        if before.path >= after.path:
            raise _invalid(f"its files are not sorted: {after.path!r:.200} comes after {before.path!r:.200}")
    _check_folders({file.path for file in files})


def _check_folders(paths: set[str]) -> None:
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    for path in sorted(paths & folders):
        raise _invalid(f"{path!r:.200} is a file, and a folder of another one")


def _check_chunks(manifest: SealedManifest) -> None:
    chunks = iter(enumerate(manifest.chunks))
    for file in manifest.files:
        if not file.size and file.checksum != _NOTHING:
            raise _invalid(f"{file.path!r:.200} is empty, and has a checksum of something")
        covered = 0
        while covered < file.size:
            position, chunk = next(chunks, (-1, None))
            if chunk is None:
                raise _invalid(f"bytes of {file.path!r:.200} from {covered} on have no chunk")
            _check_chunk(chunk, position, manifest.chunk_size)
            if (chunk.file_index, chunk.offset) != (file.index, covered) or covered + chunk.length > file.size:
                raise _invalid(f"chunk {position} is not the next one of {file.path!r:.200}, from byte {covered} on")
            if chunk.length == file.size and chunk.checksum != file.checksum:
                raise _invalid(f"{file.path!r:.200} and its only chunk have different checksums")
            covered += chunk.length
    for position, _ in chunks:
        raise _invalid(f"chunk {position} belongs to no file")


def _check_chunk(chunk: SealedChunk, position: int, chunk_size: int) -> None:
    where = f"chunk {position}"
    if not all(map(_is_count, (chunk.index, chunk.file_index, chunk.offset, chunk.length))):
        raise _invalid(f"{where} has a number that is none")
    if chunk.index != position:
        raise _invalid(f"{where} has index {chunk.index!r:.50}")
    if not 0 < chunk.length <= chunk_size:
        raise _invalid(f"{where} has {chunk.length!r:.50} bytes; 1 to {chunk_size} are allowed")
    _check_checksum(chunk.checksum, where)


def _check_checksum(checksum: object, where: str) -> None:
    if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
        raise _invalid(f"{where} has the checksum {checksum!r:.50}; eight hex digits in lower case are allowed")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _invalid(problem: str) -> ArtifactInvalid:
    return ArtifactInvalid(f"the manifest is not usable: {problem}; seal the cache again, or leave this source out")
