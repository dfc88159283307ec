"""Chains through GPUs: a source in host memory feeds one, which feeds another while it is still receiving."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

import modelexpress as mx
from tests.support.chain_target import ChainTarget
from tests.support.sources import SourceProcess

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

MEGABYTES = 256
SLOW = 64 << 20
"""Bytes a second of a source that leaves time to watch."""


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


@contextmanager
def chain(registry: str, identity: mx.SourceIdentity, transport: str, links: int) -> Iterator[list[ChainTarget]]:
    """Yield targets on GPUs 1, 0, 1, …, in the order in which they have joined a source in host memory."""
    with ExitStack() as stack:
        stack.enter_context(SourceProcess(registry, identity, MEGABYTES, transport=transport, uplink=SLOW))
        targets = [
            stack.enter_context(ChainTarget(registry, identity, MEGABYTES, transport, gpu=1 - number % 2, uplink=SLOW))
            for number in range(links)
        ]
        for target in targets:
            target.start()
            target.reach(1)
        yield targets


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_each_gpu_feeds_the_next_one(registry: str, identity: mx.SourceIdentity, transport: str) -> None:
    with chain(registry, identity, transport, 3) as targets:
        reports = [target.report() for target in targets]
    assert all(report["right"] for report in reports)
    assert [report["source"] for report in reports[1:]] == [target.worker_id for target in targets[:2]]


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_when_a_gpu_of_the_middle_dies_the_next_one_goes_on(
    registry: str, identity: mx.SourceIdentity, transport: str
) -> None:
    with chain(registry, identity, transport, 3) as (first, middle, last):
        last.reach(3)
        middle.kill()
        reports = [first.report(), last.report()]
    assert all(report["right"] for report in reports)
    assert reports[1]["kept_bytes"] >= 0.3 * reports[1]["nbytes"]
