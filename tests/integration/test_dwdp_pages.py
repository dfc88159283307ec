"""The page about sharing experts: every command and every program on it works, and what it says is true."""

import re
import socket
from pathlib import Path

import pytest

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.foresee import H200_BANDWIDTH, H200_FLOPS, H200_MEMORY_BANDWIDTH
from tests.support.documented import Reader

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dwdp.md"


@pytest.mark.timeout(300)
def test_the_page_works(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Reader(tmp_path, port) as reader:
        reader.follow(PAGE)
    assert sum(command.startswith("mx dwdp plan") for command in reader.ran) == 3
    assert "torchrun --nproc-per-node 2 ranks.py" in reader.ran
    assert "% of fetching is hidden" in (tmp_path / "timeline.svg").read_text()
    assert "hidden from" in (tmp_path / "plan.svg").read_text()


def test_limits_and_numbers_on_the_page_are_those_of_the_code() -> None:
    text = PAGE.read_text()
    assert re.search(rf"default of `--bandwidth`.*\| {H200_BANDWIDTH / 1e9:g} GB/s", text)
    assert re.search(rf"default of `--tflops` \| {H200_FLOPS / 1e12:g} TFLOP/s", text)
    assert f"default of `--memory-bandwidth` is the data sheet's {H200_MEMORY_BANDWIDTH / 1e12:g} TB/s" in text
    config = DwdpConfig.spreading(256, 3)
    assert f"L = {config.num_experts_per_worker} and S = {config.num_prefetch_experts}" in text
