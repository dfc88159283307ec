"""`mx demo`: three replicas with the same logits, and nothing left when it is over or interrupted."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.commands import run, start
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the demonstration a folder for temporary files, and check that nothing of its own is left there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    assert list(tmp_path.glob("mx-demo-*")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_socket()] == []


def test_three_replicas_give_the_same_logits() -> None:
    ended = run("demo", "--tiny", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["same_logits"] is True
    first, second, third = told["replicas"]
    assert [replica["origin"] for replica in told["replicas"]] == ["disk", "peer", "peer"]
    assert len({replica["logits"] for replica in told["replicas"]}) == 1
    assert second["report"]["source"] == first["worker_id"]
    assert third["report"]["source"] in (first["worker_id"], second["worker_id"])
    assert {replica["report"]["strategy"] for replica in (second, third)} == {"peer"}


def test_an_interrupted_demonstration_ends_its_processes() -> None:
    with start("demo", "--tiny") as demo:
        assert demo.stdout is not None
        assert any("starting replica 1" in line for line in demo.stdout)
        children = psutil.Process(demo.pid).children()
        assert children
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)
        wait_until(lambda: not any(child.is_running() for child in children))
    assert demo.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
