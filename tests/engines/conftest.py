"""Environments with real engines, made where they are missing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelexpress.cli.demo_model import build_demo_model
from tests.support.registries import RegistryProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of the environment with vLLM."""
    return _engine("vllm")


@pytest.fixture(scope="session")
def sglang_python() -> Path:
    """The interpreter of the environment with SGLang."""
    return _engine("sglang")


def _engine(name: str) -> Path:
    subprocess.run([sys.executable, "-m", "scripts.engines", name], cwd=ROOT, check=True)
    return ROOT / ".engines" / name / "bin" / "python"


@pytest.fixture
def registry() -> Iterator[str]:
    """HOST:PORT of a registry."""
    with RegistryProcess() as process:
        yield process.address


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Llama."""
    return build_demo_model(tmp_path / "model", scale="tiny")
