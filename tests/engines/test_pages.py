"""The pages for engines work, as somebody who reads them for the first time would find out."""

import os
import re
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.documented import Reader
from tests.support.vllm_replica import share_what_vllm_knows
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
VLLM = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    "VLLM_USE_AOT_COMPILE": "0",  # what that leaves behind is not found again on CPUs
}


@pytest.fixture
def ports() -> list[int]:
    """Three that are free."""
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]


@pytest.mark.timeout(600)
def test_the_page_of_vllm_works(vllm_python: Path, ports: list[int], tmp_path: Path) -> None:
    registry, first, second = ports

    def variables(port: int) -> dict[str, str]:
        """Each replica has caches and temporary files of its own, as on hosts of their own."""
        caches = tmp_path / f"caches-{port}"
        (caches / "temporary").mkdir(parents=True, exist_ok=True)
        share_what_vllm_knows(vllm_python, caches / "vllm")
        folders = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        folders["TMPDIR"] = "temporary"
        sockets = tempfile.gettempdir()  # their paths have 107 characters at most
        path = f"{vllm_python.parent}{os.pathsep}{os.environ['PATH']}"
        own = {name: str(caches / folder) for name, folder in folders.items()}
        return {**VLLM, **own, "PATH": path, "VLLM_RPC_BASE_PATH": sockets}

    with Reader(tmp_path, registry, variables, {8000: first, 8100: second}) as reader:
        reader.follow(ROOT / "docs" / "vllm.md")
        wait_until(lambda: "installed files were used" in reader.log(second), 60)
    assert any(command.startswith("curl") for command in reader.ran)
    assert "the weights came from a peer" not in reader.log(first)
    assert "the weights came from a peer" in reader.log(second)
    for kind in ("torch_compile", "inductor_headers"):
        assert re.search(rf"{kind}: (\d+) of \1 files .* fetched over local", reader.log(second)), kind
    headers = [
        {path.name for path in (tmp_path / f"caches-{port}" / "temporary").rglob("*.gch")} for port in (first, second)
    ]
    assert headers[0] == headers[1] != set(), "the second one compiled no header of its own"
    assert "none of the" not in reader.log(second)


@pytest.mark.timeout(600)
def test_the_page_of_sglang_works(sglang_python: Path, ports: list[int], tmp_path: Path) -> None:
    registry, first, second = ports
    path = f"{sglang_python.parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1", "PATH": path}
    with Reader(tmp_path, registry, lambda port: variables, {30000: first, 30100: second}) as reader:
        reader.follow(ROOT / "docs" / "sglang.md")
    assert any(command.startswith("curl") for command in reader.ran)
    assert "the weights came from a peer" not in reader.log(first)
    assert "the weights came from a peer" in reader.log(second)


def test_the_page_of_transformers_works(ports: list[int], tmp_path: Path) -> None:
    with Reader(tmp_path, ports[0]) as reader:
        reader.follow(ROOT / "docs" / "transformers.md")
    assert reader.ran[-2:] == ["python source.py", "python target.py"]
