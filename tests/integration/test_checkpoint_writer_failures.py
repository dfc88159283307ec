"""Full disks, killed and interrupted writers: real limits, real processes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint import Checkpoint
from modelexpress.weights.checkpoint_writer import CheckpointWriter
from modelexpress.weights.staging_folder import PREFIX, remove_abandoned
from modelexpress.weights.stored_tensor import TensorEntry

MEBIBYTE = 2**20

# Arguments: folder, bytes of the one tensor, largest file in bytes. Fills half, says so, waits for a line,
# and finishes. Prints the error instead if there is one.
WRITER = """
import pathlib, resource, sys
from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint_writer import CheckpointWriter
from modelexpress.weights.stored_tensor import TensorEntry

out, nbytes, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
tensors = [TensorEntry("w", "uint8", (nbytes,), nbytes)]
try:
    with CheckpointWriter(out, tensors, {"config.json": b"{}"}) as writer:
        writer.buffer("w")[: nbytes // 2] = bytes(nbytes // 2)
        print("half", flush=True)
        sys.stdin.readline()
        writer.commit()
        print("done", flush=True)
except CheckpointError as error:
    print(error, flush=True)
"""

# Mounts a disk of one MiB that only the command after it sees; needs no root where user namespaces are
# allowed.
SMALL_DISK = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=1m none "$0" && exec "$@"',
)


def writer_command(out: Path, nbytes: int, limit: int = 0) -> list[str]:
    return [sys.executable, "-c", WRITER, str(out), str(nbytes), str(limit)]


def run(command: list[str]) -> str:
    return subprocess.run(command, input="\n", capture_output=True, text=True, check=True, timeout=60).stdout


@contextmanager
def half_written(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a writer that has written half of its tensor and waits."""
    with subprocess.Popen(
        writer_command(out, MEBIBYTE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    answer, _ = process.communicate("\n", timeout=60)
    return answer


def test_a_file_beyond_the_limit_is_found_at_once(tmp_path: Path) -> None:
    answer = run(writer_command(tmp_path / "out", 4 * MEBIBYTE, limit=MEBIBYTE))
    assert "the checkpoint needs 41944" in answer
    assert "are available: File too large; free space" in answer
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_found_at_once() -> None:
    # tmpfs compares a reservation with its size first: nothing fills up, and the refusal is the kernel's own.
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir():
        pytest.skip("this machine has no /dev/shm")
    nbytes = 2**45
    with TemporaryDirectory(dir=shared_memory) as folder:
        with (
            pytest.raises(CheckpointError, match=r"needs 35184372\d+ bytes .* No space left on device"),
            CheckpointWriter(Path(folder, "out"), [TensorEntry("w", "uint8", (nbytes,), nbytes)], {}),
        ):
            pass
        assert list(Path(folder).iterdir()) == []


def test_a_small_disk_is_found_full_and_left_clean(tmp_path: Path) -> None:
    command = [*SMALL_DISK, str(tmp_path), "sh", "-c"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk of its own is not permitted here")
    listing = '"$@"; ls -A "$0"; df --output=used "$0"'
    full = run([*command, listing, str(tmp_path), *writer_command(tmp_path / "out", 2 * MEBIBYTE)])
    assert "No space left on device" in full
    assert full.splitlines()[1].strip() == "Used"  # ls had nothing to say
    assert full.split()[-1] == "0"
    fits = run([*command, listing, str(tmp_path), *writer_command(tmp_path / "out", MEBIBYTE // 2)])
    assert fits.splitlines()[:3] == ["half", "done", "out"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with half_written(tmp_path / "new" / "out") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with half_written(tmp_path / "out") as process:
        process.kill()
        process.wait(timeout=60)
    assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
    with half_written(tmp_path / "out") as process:
        assert len(list(tmp_path.iterdir())) == 1
        assert finish(process) == "done\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with half_written(tmp_path / "first") as first, half_written(tmp_path / "second") as second:
        remove_abandoned(tmp_path)
        assert (finish(second), finish(first)) == ("done\n", "done\n")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    for path in tmp_path.iterdir():
        with Checkpoint.open(path) as checkpoint:
            assert checkpoint.total_bytes == MEBIBYTE


def test_of_two_writers_of_one_folder_the_first_wins(tmp_path: Path) -> None:
    with half_written(tmp_path / "out") as first, half_written(tmp_path / "out") as second:
        assert finish(second) == "done\n"
        assert "is not empty" in finish(first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    (tmp_path / f"{PREFIX}link").symlink_to("elsewhere")
    (tmp_path / f"{PREFIX}file").touch()
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "elsewhere" / "notes.txt").exists()
