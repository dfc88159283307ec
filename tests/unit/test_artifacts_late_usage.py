"""The use of caches where nothing tells when an engine is ready: said once, when it is known or time is up."""

import logging
from pathlib import Path

import pytest

from modelexpress.artifacts.bringing import BroughtCaches
from modelexpress.artifacts.late_usage import LateUsage
from modelexpress.artifacts.usage import watch
from tests.support.waiting import wait_until

FILES = ("a", "b")


@pytest.fixture
def brought(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> BroughtCaches:
    caplog.set_level(logging.INFO)
    for name in FILES:
        (tmp_path / name).write_text(name)
    return BroughtCaches((), {"plain": watch(tmp_path, FILES)})


def test_it_is_said_when_nothing_more_is_read(
    brought: BroughtCaches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").read_text()
    late = LateUsage(brought, 600, quiet=0.06)
    wait_until(lambda: "plain: 1 of 2 installed files were used" in caplog.text)
    late.close()
    assert len(caplog.messages) == 1


def test_while_nothing_is_read_it_waits_for_the_end_of_its_patience(
    brought: BroughtCaches, caplog: pytest.LogCaptureFixture
) -> None:
    late = LateUsage(brought, 0.3, quiet=0.01)
    wait_until(lambda: "plain: none of the 2 files that a peer compiled was used so far" in caplog.text)
    late.close()
    assert brought.usage() == {}


def test_it_is_said_at_the_latest_when_it_is_closed(
    brought: BroughtCaches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = LateUsage(brought, 600)
    assert not caplog.messages
    (tmp_path / "b").read_text()
    late.close()
    late.close()
    assert caplog.messages == ["plain: 1 of 2 installed files were used (by their access times)"]
