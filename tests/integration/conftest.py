"""Fixtures of the integration tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder of a small Llama, which nobody may change."""
    from modelexpress.cli.demo_model import build_demo_model

    return build_demo_model(tmp_path_factory.mktemp("checkpoint") / "tiny", scale="tiny")
