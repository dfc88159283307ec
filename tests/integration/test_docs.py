"""Every command and every program in the documentation works, in the order in which it stands there."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documented import Reader

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Reader(tmp_path, port) as someone:
        yield someone


@pytest.mark.timeout(300)
def test_the_readme_works(reader: Reader) -> None:
    reader.follow(ROOT / "README.md")
    assert "mx pull demo-tiny --out models/copy" in reader.ran
    assert "python target.py" in reader.ran
    assert (reader.folder / "models" / "copy" / "config.json").exists()


@pytest.mark.timeout(300)
def test_the_commands_page_works(reader: Reader) -> None:
    reader.follow(ROOT / "docs" / "cli.md")
    assert {command.split()[1] for command in reader.ran if command.startswith("mx ")} >= {"doctor", "bench", "pull"}


def test_other_pages_hold_no_commands_that_nobody_runs() -> None:
    of_engines = ("vllm.md", "sglang.md", "transformers.md")  # tests/engines follows these
    others = ("cli.md", "dwdp.md", "tensorrt-llm.md")  # test_dwdp_pages.py, test_trtllm_page.py
    for page in (ROOT / "docs").glob("*.md"):
        if page.name not in (*others, *of_engines):
            assert "```console" not in page.read_text(), page.name
