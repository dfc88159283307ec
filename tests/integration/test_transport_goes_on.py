"""A transport that fails in the middle of a load: the source's next one brings the rest.

`local` with host memory stands in for a GPU that maps some of a source's allocations and is refused a later one:
tests/unit/test_transport_device_mapping.py has that such a refusal is the error which is raised here.
"""

import itertools
import uuid

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import PartialModel, TransportUnavailable
from modelexpress.transport import Run, local_reader
from tests.support.sources import SourceProcess, tensors

MEGABYTES = 16
GOOD_RUNS = 6
REASON = "device 1 cannot map the source's memory: refused"


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


@pytest.fixture(autouse=True)
def refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `local` copy some runs and refuse all others."""
    original, calls = local_reader.copy_exactly, itertools.count()

    def copy(descriptor: int, run: Run) -> None:
        if next(calls) >= GOOD_RUNS:
            raise TransportUnavailable(REASON)
        original(descriptor, run)

    monkeypatch.setattr(local_reader, "copy_exactly", copy)


def load(registry: str, identity: mx.SourceIdentity, transport: str) -> tuple[mx.LoadReport, dict[str, torch.Tensor]]:
    model = {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}
    chosen = {"transport": transport, "chunk_bytes": 1 << 20}
    report = mx.load(model, identity, registry=registry, settings=mx.Settings.model_validate(chosen))
    return report, model


def test_the_rest_comes_over_the_next_transport(
    registry: str, identity: mx.SourceIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelexpress.transport.tcp_reader.TcpReader.advice", lambda self: "an arena is faster")
    with SourceProcess(registry, identity, MEGABYTES, transport="auto") as source:
        report, model = load(registry, identity, "auto")
        assert all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES).items())
        assert (report.source, report.transport) == (source.worker_id, "tcp")
        assert report.notes[-1] == "an arena is faster"
        assert any("local" in note and REASON in note for note in report.notes)
        (copied,) = (stage.nbytes for stage in report.stages if stage.name == "copy and verify")
        assert copied < MEGABYTES << 20, "what was verified is not fetched again"
        assert report.nbytes == MEGABYTES << 20


def test_a_source_with_no_other_transport_is_given_up(registry: str, identity: mx.SourceIdentity) -> None:
    with (
        SourceProcess(registry, identity, MEGABYTES, transport="local"),
        pytest.raises(PartialModel, match=REASON),
    ):
        load(registry, identity, "local")
