"""Sockets live in a folder of this user alone, and those of dead processes are removed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.errors import TransportUnavailable
from modelexpress.transport.runtime_directory import MAX_PATH_BYTES, listen_privately


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mx") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def test_the_folder_and_the_socket_are_private(base: Path) -> None:
    sock, path = listen_privately()
    with sock:
        assert path.parent.parent == base
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600


def test_sockets_of_the_dead_are_removed_and_those_of_the_living_stay(base: Path) -> None:
    dead, dead_path = listen_privately()
    living, living_path = listen_privately()
    dead.close()
    other, other_path = listen_privately()
    with living, other:
        assert sorted(path for path in living_path.parent.iterdir()) == sorted([living_path, other_path])
        assert not dead_path.exists()


def test_a_base_that_is_too_long_is_passed_over(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = base / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    sock, path = listen_privately()
    with sock:
        assert len(os.fsencode(path)) <= MAX_PATH_BYTES
        assert long not in path.parents
    path.unlink()


def test_a_folder_that_others_may_enter_is_passed_over(base: Path) -> None:
    open_to_all = base / f"modelexpress-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    sock, path = listen_privately()
    with sock:
        assert path.parent != open_to_all
    path.unlink()


def test_without_any_folder_the_reasons_are_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(base / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(base / "missing"))
    monkeypatch.setattr("modelexpress.transport.runtime_directory._LAST_RESORT", str(base / "missing"))
    with pytest.raises(TransportUnavailable, match="no Unix socket can be made"):
        listen_privately()
