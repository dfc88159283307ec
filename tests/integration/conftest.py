"""Fixtures of the integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder of a small Llama, which nobody may change."""
    from modelexpress.cli.demo_model import build_demo_model

    return build_demo_model(tmp_path_factory.mktemp("checkpoint") / "tiny", scale="tiny")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A process that forks ranks, for all tests of ranks that share experts."""
    with Nursery() as process:
        yield process
