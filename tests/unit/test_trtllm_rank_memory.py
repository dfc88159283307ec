"""The file of a rank that is read into memory: it must be the one whose header was looked at."""

import os
from pathlib import Path

import pytest

from modelexpress.engines.trtllm.rank_memory import RankFile
from modelexpress.errors import CheckpointError
from tests.support.trtllm_checkpoints import config_of, plain_rank, write_checkpoint

CHUNK = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", config_of(1), plain_rank) / "rank0.safetensors"


def read(file: RankFile) -> None:
    file.read({}, CHUNK, lambda _: None)


def test_a_file_that_was_replaced_is_not_sealed_under_the_old_header(path: Path, tmp_path: Path) -> None:
    file = RankFile.open(path)
    other = write_checkpoint(tmp_path / "other", config_of(1), lambda _: plain_rank(7)) / path.name
    assert other.stat().st_size == path.stat().st_size
    os.replace(other, path)
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors: it changed while it was read"):
        read(file)


def test_a_file_that_was_written_to_before_it_was_read(path: Path) -> None:
    file = RankFile.open(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read(file)


@pytest.mark.parametrize("nbytes", [0, 1 << 20])
def test_a_file_that_changes_while_it_is_read(path: Path, nbytes: int) -> None:
    file = RankFile.open(path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        file.read({}, CHUNK, lambda _: os.truncate(path, nbytes))


def test_a_file_that_stays_is_read(path: Path) -> None:
    read(RankFile.open(path))
