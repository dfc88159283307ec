"""Where the bytes of one rank go: straight into its file, which is mapped."""

import logging
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modelexpress.engines.trtllm.config import CONFIG_NAME, rank_name
from modelexpress.engines.trtllm.identity import header_name, is_header_name
from modelexpress.engines.trtllm.partial_folder import MappedFile, PartialFolder, make_durable
from modelexpress.errors import CheckpointError, ManifestInvalid, ManifestMismatch
from modelexpress.transfer.digester import digester
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest, contiguous_strides
from modelexpress.transfer.pieces import Addresses, Pieces, cut
from modelexpress.weights.reading import Destinations, ReadFile
from modelexpress.weights.safetensors_header import LENGTH_BYTES, parse_header
from modelexpress.weights.side_files import check_side_paths
from modelexpress.weights.small_files import listed, parse_json_object
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Flags

logger = logging.getLogger(__name__)

_RELEASE_BYTES = 16 << 20
_PAGE = mmap.PAGESIZE


class RankRoom:
    """The file of one rank in the making, as room for a source's bytes.

    What an interrupted load left in it is compared with the source's digests, and only the rest travels.

    Args:
        rank: Which one.
        folder: Where the file is.
        ledger: Takes note of what is there already.

    Attributes:
        files: Configuration and other small files that came along, by path.
        tensors: How many the rank has.
    """

    def __init__(self, rank: int, folder: PartialFolder, ledger: Ledger) -> None:
        self._rank = rank
        self._folder = folder
        self._ledger = ledger
        self._header = b""
        self._file: MappedFile | None = None
        self._chunk_bytes = 0
        self._released = 0
        self.files: dict[str, bytes] = {}
        self.tensors = 0

    @property
    def file(self) -> MappedFile | None:
        """The file, from when a source has said what it holds until it is finished."""
        return self._file

    @property
    def released(self) -> int:
        """Bytes of the file, from its beginning, to which nothing is written any more, in whole pages."""
        return self._released

    @property
    def devices(self) -> frozenset[int | None]:
        return frozenset({None})

    @property
    def staged(self) -> frozenset[str]:
        return frozenset()

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        files = {file.path: read_file(file) for file in manifest.files}
        header = _whole_header(files, self._rank)
        # Before the file is touched, so that a source that is wrong leaves no trace for those that are right.
        _check_files(files, self._rank)
        _check_header(header, manifest, self._rank)
        if self._file is None:
            self._file, self._header = self._open_file(header, manifest), header
        elif header != self._header:
            raise ManifestMismatch("another source of the same identity holds other tensors: load again")
        elif manifest.chunk_bytes != self._chunk_bytes:
            # No digest of the source before says anything about these chunks.
            self._note(manifest, _pieces(manifest, self._file), self._file)
        self._chunk_bytes = manifest.chunk_bytes
        self.files = {path: content for path, content in files.items() if not is_header_name(path)}
        self.tensors = len(manifest)
        return {None: _addresses(manifest, self._file)}

    def release(self, done: int) -> None:
        """Let go of the memory of the first bytes, which are in place: they stay in the file.

        Args:
            done: Bytes of tensors that are verified, from the beginning.
        """
        end = (len(self._header) + done) // _PAGE * _PAGE
        if self._file is not None and end - self._released >= _RELEASE_BYTES:
            self._file.write_out(self._released, end)
            self._file.let_go(self._released, end)
            self._released = end

    def finish(self) -> None:
        """Make the file durable.

        Raises:
            CheckpointError: The disk failed.
        """
        if self._file is not None:
            make_durable(self._folder.path / rank_name(self._rank))
            self._released = len(self._file.content)
            self._file = None

    def _open_file(self, header: bytes, manifest: Manifest) -> MappedFile:
        nbytes = len(header) + manifest.total_bytes
        for file in self._folder.in_place(self._rank, header, nbytes):
            pieces = _pieces(manifest, file)
            # Other weights differ at once, as a rule: then the rest need not be read.
            if _right(pieces[:1]).all() and _right(pieces).all() and self._folder.adopt(self._rank, file):
                logger.info("rank %d is in place already, byte for byte", self._rank)
                self._ledger.record(manifest, pieces)
                return file
        if (kept := self._folder.kept(self._rank, header, nbytes)) is not None:
            self._note(manifest, _pieces(manifest, kept), kept)
        file = kept or self._folder.create(self._rank, header, nbytes)
        file.expect_writes()
        return file

    def _note(self, manifest: Manifest, pieces: Pieces, file: MappedFile) -> None:
        base = file.address
        written = [file.has_data(int(p["address"]) - base, int(p["nbytes"])) for p in pieces]
        pieces = pieces[np.array(written, np.bool_)]
        right = pieces[_right(pieces)]
        self._ledger.record(manifest, right)
        logger.info("rank %d: %d bytes that are in place are kept", self._rank, int(right["nbytes"].sum()))


def _whole_header(files: Mapping[str, bytes], rank: int) -> bytes:
    text = files.get(header_name(rank))
    if text is None:
        raise ManifestInvalid(f"the source of rank {rank} does not offer the header of its file")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _check_files(files: Mapping[str, bytes], rank: int) -> None:
    try:
        check_side_paths(files)
        if rank == 0:
            # It speaks for all ranks, so that one of them brings it.
            parse_json_object(files.get(CONFIG_NAME, b""), Path(CONFIG_NAME))
    except CheckpointError as error:
        raise ManifestInvalid(f"the source holds what no checkpoint can: {error}") from error


def _check_header(header: bytes, manifest: Manifest, rank: int) -> None:
    """Check that a header is one of a file that holds just the tensors of a manifest."""
    name = rank_name(rank)
    try:
        stored = parse_header(header, Path(name), len(header) + manifest.total_bytes)
    except CheckpointError as error:
        # Another source may be better: this is about what the source holds, not about the disk.
        raise ManifestInvalid(f"the source holds what no checkpoint can: {error}") from error
    theirs = {(t.name, t.dtype, t.shape, t.nbytes) for t in manifest.tensors if _row_major(t)}
    ours = {(t.name, t.dtype, t.shape, t.nbytes) for t in stored}
    if ours != theirs or len(stored) != len(manifest):
        differing = {name for name, *_ in ours ^ theirs}
        raise ManifestInvalid(f"header and manifest of {name} differ in {listed(differing)}: restart the source")


def _addresses(manifest: Manifest, file: MappedFile) -> Addresses:
    """Return where each tensor goes, by the header at the beginning of the file."""
    stored, base = parse_header(file.content, file.path), file.address
    return Addresses.of(manifest, {tensor.name: base + tensor.offset for tensor in stored if tensor.nbytes})


def _pieces(manifest: Manifest, file: MappedFile) -> Pieces:
    return cut(manifest, _addresses(manifest, file))


def _right(pieces: Pieces) -> Flags:
    """Return for each piece whether its bytes are what the source has."""
    found = digester(None).start(np.ascontiguousarray(pieces["address"]), pieces["nbytes"].astype(np.uint64))
    same: Flags = found.result() == pieces["digest"]
    return same


def _row_major(spec: TensorSpec) -> bool:
    return not spec.nbytes or spec.strides == contiguous_strides(spec.shape)
