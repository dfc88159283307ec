"""Which installed files were used: found out with real reads, of this process and of others."""

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelexpress.artifacts import usage
from modelexpress.artifacts.usage import Usage, total, watch
from modelexpress.artifacts.watching import OpenWatch

FILES = ("kernel.so", "a/b/cubin.bin", "a/meta.json", "empty")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = tmp_path / "cache"
    for path in FILES:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"" if path == "empty" else path.encode() * 100)
    return root


@pytest.fixture
def no_access_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache whose reads leave the time of last access alone, as on a mount with `noatime`."""
    done = subprocess.run(["chattr", "-R", "+A", tmp_path], capture_output=True)
    if done.returncode:
        pytest.skip(f"files cannot be made to ignore reads here: {done.stderr!r}")
    yield
    subprocess.run(["chattr", "-R", "-A", tmp_path], check=True)


def map_it(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[0] >= 0


def read_elsewhere(path: Path) -> None:
    subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1]).read()", path], check=True)


READS: list[Callable[[Path], object]] = [Path.read_bytes, map_it, read_elsewhere]


@pytest.mark.parametrize("read", READS)
def test_a_read_counts_once(cache: Path, read: Callable[[Path], object]) -> None:
    watched = watch(cache, FILES)
    assert watched.usage().used == 0
    read(cache / "kernel.so")
    read(cache / "kernel.so")
    assert watched.usage() == Usage(4, 1, "by their access times")
    read(cache / "a/b/cubin.bin")
    assert watched.usage().used == 2


def test_what_was_read_before_somebody_else_watches_counts(cache: Path) -> None:
    installer = watch(cache, FILES)
    (cache / "kernel.so").read_bytes()
    other = watch(cache, [*FILES, "gone"], by_other=True)
    assert other.usage() == Usage(4, 1, "by their access times")
    (cache / "a/meta.json").read_bytes()
    assert installer.usage() == other.usage() == Usage(4, 2, "by their access times")


def test_looking_at_files_is_no_use_of_them(cache: Path) -> None:
    watched = watch(cache, FILES)
    assert sum(path.is_file() and path.stat().st_size > 0 for path in cache.rglob("*")) == 3
    assert watched.usage().used == 0
    assert watched.usage().in_vain


def test_watching_changes_neither_content_nor_time_of_change(cache: Path) -> None:
    before = {path: ((cache / path).read_bytes(), (cache / path).stat().st_mtime_ns) for path in FILES}
    watch(cache, FILES)
    assert {path: ((cache / path).read_bytes(), (cache / path).stat().st_mtime_ns) for path in FILES} == before
    assert sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()) == sorted(FILES)


def test_a_file_that_is_gone_was_not_used(cache: Path) -> None:
    watched = watch(cache, FILES)
    (cache / "kernel.so").unlink()
    assert watched.usage().used == 0


def test_what_is_closed_watches_nothing(cache: Path) -> None:
    watched = watch(cache, FILES)
    watched.close()
    watched.close()
    assert watched.usage().installed == 0


@pytest.mark.parametrize("read", READS)
@pytest.mark.usefixtures("no_access_times")
def test_where_access_times_are_not_kept_openings_are_counted(cache: Path, read: Callable[[Path], object]) -> None:
    subprocess.run(["chattr", "-R", "+A", cache], check=True)
    watched = watch(cache, FILES)
    assert watched.usage() == Usage(4, 0, "by what was opened")
    read(cache / "kernel.so")
    read(cache / "kernel.so")
    (cache / "a" / "stranger").write_bytes(b"not installed")
    assert watched.usage() == Usage(4, 1, "by what was opened")
    watched.close()


@pytest.mark.usefixtures("no_access_times")
def test_without_watches_the_use_is_unknown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["chattr", "-R", "+A", cache], check=True)

    def refuse(root: Path, files: object) -> OpenWatch:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(usage, "OpenWatch", refuse)
    found = watch(cache, FILES).usage()
    assert found.used is None
    assert not found.in_vain
    assert "unknown how many" in str(found)


def test_more_events_than_the_kernel_keeps_are_said_to_be_incomplete(cache: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watched = OpenWatch(cache, FILES)
    for number in range(most // 2 + 2):
        # By turns: the kernel keeps one of several equal events in a row.
        (cache / "kernel.so").open().close()
        (cache / FILES[number % 2 + 2]).open().close()
    used, complete = watched.opened()
    assert not complete
    assert used >= 1
    watched.close()
    watched.close()


def test_a_folder_that_is_gone_cannot_be_watched(cache: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        OpenWatch(cache, ["gone/file"])


def test_usages_add_up_unless_one_is_unknown() -> None:
    known, unknown = Usage(3, 1, "x"), Usage(2, None, "y")
    assert total([known, known]) == Usage(6, 2, "x")
    assert total([known, unknown]).used is None
    assert total([]).used == 0
