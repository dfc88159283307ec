"""`mx bench` and its parts: what is measured is there, and adds up. How fast it is, is for benchmarks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelexpress.cli.bench_source import made_up_tensors, tensor_sizes
from modelexpress.cli.child import ChildFailed, child
from modelexpress.cli.figure import Figure
from modelexpress.cli.plain_sockets import receive_seconds
from modelexpress.cli.sizes import parse_bytes, shown_bytes
from modelexpress.cli.speed import copy_seconds, digest_seconds, filled_arena, fresh_copy_seconds
from modelexpress.errors import ConfigurationError
from modelexpress.memory import HostArena

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_measures_each_transport_beside_its_limit(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", "--bytes", "2MiB", "--tensors", "7", "--json", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "modelexpress.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert result["machine"]["cores"] > 0
    assert (result["bytes"], result["tensors"]) == (2 << 20, 7)
    loads = [figure for figure in result["figures"] if "copy and verify" in figure["name"]]
    assert [figure["name"].split()[2].strip(",") for figure in loads] == ["local", "tcp"]
    for figure in loads:
        assert figure["ratio"] == figure["value"] / figure["limit_value"] > 0


def test_more_than_fits_into_memory_is_refused_before_anything_starts() -> None:
    command = [sys.executable, "-m", "modelexpress.cli", "bench", "--bytes", "1000000GiB"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "are free" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1", 1), ("4GiB", 4 << 30), ("1.5 GB", 1_500_000_000), ("64mib", 64 << 20), (" 7 kb ", 7000)]
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4 apples", "0", "1e9", "0.1"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write it like"):
        parse_bytes(text)


def test_made_up_tensors_are_as_many_and_as_large_as_asked_for() -> None:
    tensors = made_up_tensors(1 << 20, 3)
    assert [tensor.numel() for tensor in tensors.values()] == tensor_sizes(1 << 20, 3)
    assert 1 << 20 <= sum(tensor_sizes(1 << 20, 3)) < (1 << 20) + 3 * 1024
    assert all(HostArena.holding(tensor.data_ptr(), tensor.numel()) for tensor in tensors.values())


def test_a_copy_copies_every_byte() -> None:
    source, target = filled_arena(3 << 20), HostArena(7 << 20)
    assert copy_seconds(target, source, 7 << 20) > 0
    assert bytes(memoryview(target)[: 3 << 20]) == bytes(memoryview(source))
    assert bytes(memoryview(target)[6 << 20 :]) == bytes(memoryview(source)[: 1 << 20])
    assert fresh_copy_seconds(source, 1 << 20) > 0
    assert digest_seconds(source) > 0


def test_plain_sockets_move_what_is_asked_for() -> None:
    with child("-m", "modelexpress.cli.plain_sockets", 1 << 20) as sender:
        assert receive_seconds(sender.line(), 1 << 20, 3) > 0


def test_a_child_that_fails_leaves_its_last_words() -> None:
    with child("-c", "raise SystemExit('no reason')") as process, pytest.raises(ChildFailed, match="no reason"):
        process.answer()


def test_a_child_starts_without_the_fleets_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MX_TRANSPORT", "tcp")
    with child("-c", "import os; print(os.environ.get('MX_TRANSPORT'))") as process:
        assert process.line() == "None"


def test_a_child_that_does_not_want_to_end_is_ended() -> None:
    stubborn = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); sys.stdin.read()"
    )
    with child("-c", stubborn) as process:
        process.line()
        pid = process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_figure_without_a_limit_has_no_ratio() -> None:
    assert Figure("copy", 2.0, "GB/s").ratio is None
    assert Figure("load", 1.0, "GB/s", "copy", 2.0).ratio == 0.5


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (4096, "4.10 KB"),
        (3_000_000, "3.00 MB"),
        (67_108_864, "0.07 GB"),
        (61 * 10**9, "61.00 GB"),
    ],
)
def test_small_numbers_of_bytes_do_not_look_like_nothing(nbytes: int, text: str) -> None:
    assert shown_bytes(nbytes) == text
