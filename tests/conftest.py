"""Fixtures that many tests share."""

import signal
from collections.abc import Iterator

import pytest

from tests.support.registries import RegistryProcess


def pytest_configure() -> None:
    """Undo what a shell in the background or `nohup` passes on: children would ignore the signals that tests send."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    """HOST:PORT of a registry that all tests of a session share; each uses identities of its own."""
    with RegistryProcess() as process:
        yield process.address
