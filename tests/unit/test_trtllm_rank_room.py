"""The room of one rank, when one source lies and the next one does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from modelexpress.engines.trtllm.identity import header_name
from modelexpress.engines.trtllm.partial_folder import PartialFolder, partial_name
from modelexpress.engines.trtllm.rank_memory import RankFile
from modelexpress.engines.trtllm.rank_room import RankRoom
from modelexpress.errors import ManifestInvalid
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import cut
from modelexpress.weights.safetensors_header import LENGTH_BYTES
from tests.support.trtllm_checkpoints import config_of, plain_rank, write_checkpoint

CHUNK = 64 << 10
Files = dict[str, bytes]


@dataclass(frozen=True)
class Source:
    """What a source of rank 0 offers, without the network between."""

    manifest: Manifest
    files: Mapping[str, bytes]

    def fill(self, room: RankRoom) -> None:
        """Do what a load does first."""
        room.open(self.manifest, lambda spec: self.files[spec.path])


@pytest.fixture
def good(tmp_path: Path) -> Source:
    folder = write_checkpoint(tmp_path / "source", config_of(1), plain_rank)
    file = RankFile.open(folder / "rank0.safetensors")
    files = {header_name(0): file.header[LENGTH_BYTES:], "config.json": (folder / "config.json").read_bytes()}
    return Source(file.read(files, CHUNK, lambda _: None).manifest, files)


def with_header(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: files | {header_name(0): change(files[header_name(0)])}


def test_what_is_in_place_is_compared_with_a_source_that_cuts_other_chunks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(1), lambda _: {"w": torch.arange(1 << 20)})
    file = RankFile.open(folder / "rank0.safetensors")
    files = {header_name(0): file.header[LENGTH_BYTES:], "config.json": (folder / "config.json").read_bytes()}
    first, second = (Source(file.read(files, n * CHUNK, lambda _: None).manifest, files) for n in (4, 1))
    with PartialFolder(tmp_path / "out", "checkpoint") as partial:
        room = RankRoom(0, partial, ledger := Ledger())
        first.fill(room)
        assert room.file is not None
        half = len(file.header) + file.nbytes // 2
        room.file.content[:half] = (folder / "rank0.safetensors").read_bytes()[:half]
        addresses = room.open(second.manifest, lambda spec: files[spec.path])
        held = ledger.held(second.manifest, cut(second.manifest, addresses[None]))
    assert held.tolist() == [True] * 64 + [False] * 64


LIES: dict[str, Callable[[Files], Files]] = {
    "another name": with_header(lambda text: text.replace(b"transformer.odd", b"transformer.ODD")),
    "another dtype": with_header(lambda text: text.replace(b'"U8"', b'"I8"')),
    "no tensor": with_header(lambda _: b"{}"),
    "no JSON": with_header(lambda text: text[:-9]),
    "no configuration": lambda files: files | {"config.json": b""},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lying_source_leaves_the_room_to_a_good_one(
    good: Source, tmp_path: Path, lie: Callable[[Files], Files]
) -> None:
    files = lie(dict(good.files))
    assert files != good.files
    with PartialFolder(tmp_path / "out", "checkpoint") as folder:
        room = RankRoom(0, folder, Ledger())
        with pytest.raises(ManifestInvalid):
            Source(good.manifest, files).fill(room)
        assert list((tmp_path / "out" / partial_name("checkpoint")).iterdir()) == [], "the file was not touched"
        good.fill(room)
        assert room.tensors == len(good.manifest)


def test_a_later_source_is_looked_at_as_the_first_one_is(good: Source, tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out", "checkpoint") as folder:
        room = RankRoom(0, folder, Ledger())
        good.fill(room)
        with pytest.raises(ManifestInvalid):
            Source(good.manifest, {**good.files, "config.json": b"[]"}).fill(room)
        assert room.files["config.json"] == good.files["config.json"]
