"""Fixtures that many tests share."""

from collections.abc import Iterator

import pytest

from tests.support.registries import RegistryProcess


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    """HOST:PORT of a registry that all tests of a session share; each uses identities of its own."""
    with RegistryProcess() as process:
        yield process.address
