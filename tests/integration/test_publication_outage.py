"""A registry that is killed in the middle of a load: the load goes on, and what follows finds everything again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import modelexpress as mx
from modelexpress.peer import PeerClient
from modelexpress.wire.records import SourceStatus
from tests.support.materials import new_identity
from tests.support.registries import RegistryProcess
from tests.support.sources import SourceProcess, tensors

MEGABYTES = 64
SETTINGS = mx.Settings(transport="tcp", chunk_bytes=1 << 20)


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[RegistryProcess]:
    """A registry that remembers what it knew before it was killed."""
    with RegistryProcess(f"sqlite:{tmp_path / 'registry.db'}") as process:
        yield process


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(MEGABYTES).items()}


def right(model: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model[name], tensor) for name, tensor in tensors(MEGABYTES).items())


def reading(sources: list[SourceProcess]) -> SourceProcess:
    """Return the source that is being read."""
    for source in sources:
        with PeerClient(source.endpoint) as client:
            if client.readers():
                return source
    raise AssertionError("nobody reads")


def test_a_load_does_not_notice_that_the_registry_is_away(lasting: RegistryProcess) -> None:
    identity, model = new_identity(), empty()
    away: list[int] = []

    def outage(done: int, total: int) -> None:
        if not away and done > total // 4:
            lasting.kill()
        if done > total // 4:
            away.append(done)

    with SourceProcess(lasting.address, identity, MEGABYTES, transport="tcp") as source:
        report = mx.load(model, identity, registry=lasting.address, progress=outage, settings=SETTINGS)
        assert len(away) > 1, "the load went on without the registry"
        assert (report.source, report.kept_bytes) == (source.worker_id, 0)
        assert right(model)
        lasting.start()
        with mx.Client(lasting.address) as client:
            (ref,) = client.list_sources(identity, status=SourceStatus.READY)
            assert ref.worker_id == source.worker_id
        mx.load(empty(), identity, registry=lasting.address, settings=SETTINGS)


def test_a_load_finds_its_next_source_in_a_registry_that_came_back(lasting: RegistryProcess) -> None:
    identity, model = new_identity(), empty()
    with (
        SourceProcess(lasting.address, identity, MEGABYTES, transport="tcp") as first,
        SourceProcess(lasting.address, identity, MEGABYTES, transport="tcp") as second,
    ):
        killed: list[SourceProcess] = []

        def disaster(done: int, total: int) -> None:
            if not killed and done > total // 4:
                lasting.kill()
                killed.append(reading([first, second]))
                killed[0].process.send_signal(signal.SIGKILL)
                lasting.start()

        report = mx.load(model, identity, registry=lasting.address, progress=disaster, settings=SETTINGS)
        (survivor,) = {first, second} - set(killed)
        assert report.source == survivor.worker_id
        assert report.kept_bytes > 0
        assert right(model)
