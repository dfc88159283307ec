"""The page about TensorRT-LLM works as it stands there, with a stand-in for `trtllm-build`."""

import json
import socket
from pathlib import Path

import pytest

from tests.support import documented
from tests.support.trtllm_build_stand_in import install

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tensorrt-llm.md"


@pytest.mark.timeout(300)
def test_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}:/usr/bin:/bin")
    monkeypatch.setattr(documented, "GO_ON", (*documented.GO_ON, "mx trtllm publish"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with documented.Reader(tmp_path, port) as reader:
        reader.follow(PAGE)
    source, checkpoint = tmp_path / "checkpoints" / "llama", tmp_path / "engines" / "llama" / "checkpoint"
    for path in source.iterdir():
        assert (checkpoint / path.name).read_bytes() == path.read_bytes()
    arguments = json.loads((tmp_path / "engines" / "llama" / "engine" / "arguments.json").read_text())
    assert arguments["max_batch_size"] == "8"
    assert (tmp_path / "engines" / "again" / "checkpoint" / "rank1.safetensors").exists()
    assert "mx trtllm load --name llama --out engines/llama" in reader.ran
