"""Room for the files that a cache lacks: where the bytes of a source go before they are installed."""

import ctypes
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelexpress.artifacts.install import missing
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.offer import SEALED_FILE, SIGNATURE_FILE, TIMES_FILE
from modelexpress.artifacts.sealed import SealedFile, SealedManifest
from modelexpress.artifacts.signing import Policy, TrustedKeys, Verdict, verify
from modelexpress.errors import ArtifactInvalid, ManifestMismatch, NoRoom
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Addresses
from modelexpress.weights.reading import Destinations, ReadFile
from modelexpress.wire.records import FileSpec


@dataclass(frozen=True)
class Trust:
    """Whose artifacts may be installed: what the policy is, and which keys are trusted."""

    policy: Policy = Policy.OFF
    keys: TrustedKeys | None = None


@dataclass(frozen=True)
class Received:
    """An artifact whose missing files are on their way, or there.

    Args:
        manifest: As the source sealed it.
        verdict: Who vouches for it.
        mtimes: When each file was last changed at the source, nanoseconds since the epoch, by index.
        missing: The files that the cache lacks.
        contents: Room for each of them, by index.
    """

    manifest: SealedManifest
    verdict: Verdict
    mtimes: Mapping[int, int]
    missing: tuple[SealedFile, ...]
    contents: Mapping[int, memoryview]


class CacheRoom:
    """Memory for what a cache lacks of the artifact that a source offers.

    What one source delivered stays where it is when another one goes on.

    Args:
        kind: Of the cache.
        root: Of the cache.
        trust: Judges the signature of the source before a byte of content is asked for.
    """

    def __init__(self, kind: Kind, root: Path, trust: Trust) -> None:
        self._kind = kind
        self._root = root
        self._trust = trust
        self._places: dict[tuple[str, int], tuple[int, memoryview]] = {}
        self.received: Received | None = None

    @property
    def devices(self) -> frozenset[int | None]:
        """The host alone."""
        return frozenset({None})

    @property
    def staged(self) -> frozenset[str]:
        """Nothing: every file stays where it was received."""
        return frozenset()

    def open(self, manifest: Manifest, read_file: ReadFile) -> Destinations:
        """Return where each missing file goes, once the source has shown what it holds and who vouches for it.

        Raises:
            ArtifactInvalid: What the source sealed is not what it offers, or no cache of this kind.
            ArtifactUnsigned: Nobody who is trusted vouches for it, and the policy demands that.
            ManifestMismatch: The source lists other files than it sealed.
            NoRoom: There is no memory for the missing files.
        """
        small = {file.path: file for file in manifest.files}
        sealed = self._sealed(small, read_file)
        signature = read_file(small[SIGNATURE_FILE]) if SIGNATURE_FILE in small else None
        verdict = verify(sealed, signature, self._trust.keys, self._trust.policy)
        _compare(manifest, sealed)
        times = _times(read_file(small[TIMES_FILE]), len(sealed.files)) if TIMES_FILE in small else {}
        lacking = missing(self._kind, sealed, self._root)
        self._make_room(lacking)
        places = {file.path: self._places[file.path, file.size] for file in lacking}
        contents = {file.index: places[file.path][1] for file in lacking}
        self.received = Received(sealed, verdict, times, lacking, contents)
        addresses = {file.path: places[file.path][0] for file in lacking if file.size}
        return {None: Addresses.of(manifest, addresses)} if addresses else {}

    def _sealed(self, small: Mapping[str, FileSpec], read_file: ReadFile) -> SealedManifest:
        if SEALED_FILE not in small:
            raise ArtifactInvalid("the source offers no sealed manifest: another kind of material has this identity")
        sealed = SealedManifest.from_json(read_file(small[SEALED_FILE]))
        if sealed.artifact_id != small[SEALED_FILE].sha256:
            raise ArtifactInvalid(f"the sealed manifest has another id than the source says: {sealed.artifact_id}")
        return sealed

    def _make_room(self, files: Sequence[SealedFile]) -> None:
        """Take memory, one block, for the files that have none yet."""
        new = [file for file in files if (file.path, file.size) not in self._places]
        nbytes = sum(file.size for file in new)
        try:
            block = mmap.mmap(-1, max(nbytes, 1))
        except (OSError, OverflowError, ValueError) as error:
            raise NoRoom(f"no memory for {nbytes} bytes of the {self._kind.name} cache: {error}") from error
        block.madvise(mmap.MADV_HUGEPAGE)
        address, view, offset = ctypes.addressof(ctypes.c_char.from_buffer(block)), memoryview(block), 0
        for file in new:
            self._places[file.path, file.size] = (address + offset, view[offset : offset + file.size])
            offset += file.size


def _compare(manifest: Manifest, sealed: SealedManifest) -> None:
    """Check that a source offers the files that it sealed, each of them whole."""
    if manifest.names != tuple(file.path for file in sealed.files):
        odd = sorted(set(manifest.names) ^ {file.path for file in sealed.files}) or ["their order"]
        raise ManifestMismatch(f"the source offers other files than it sealed: {odd[0]:.200}, {len(odd)} in all")
    sizes = np.array([file.size for file in sealed.files], np.int64)
    if not np.array_equal(manifest.tensors.nbytes, sizes):
        file = sealed.files[int(np.argmax(manifest.tensors.nbytes != sizes))]
        raise ManifestMismatch(f"the source offers '{file.path:.200}' in another size than it sealed")


def _times(content: bytes, files: int) -> dict[int, int]:
    """Return the times of change of an artifact's files, by index.

    Raises:
        ArtifactInvalid: They are not one for each file, from 1970 to the end of what file systems can hold.
    """
    try:
        times = json.loads(content)
        usable = len(times) == files and all(type(time) is int and 0 <= time < 1 << 63 for time in times)
    except (ValueError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise ArtifactInvalid("the source sent times of change that are none; leave this source out")
    return dict(enumerate(times))
