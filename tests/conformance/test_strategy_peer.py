"""The peer strategy does what every strategy must do."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import modelexpress as mx
from modelexpress.weights.strategies import PeerStrategy, Strategy
from tests.conformance.strategy import CheckedStrategyConformance, Sample

SETTINGS = mx.Settings(worker_grpc_port=0, chunk_bytes=64 << 10)


class TestPeerStrategy(CheckedStrategyConformance):
    @pytest.fixture(autouse=True)
    def sources(self) -> Iterator[None]:
        with ExitStack() as self.publications:
            yield

    def good(self, model: Sample, content: dict[str, torch.Tensor], tmp_path: Path, registry: str) -> Strategy:
        identity = mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")
        publication = mx.publish(content, identity, registry=registry, settings=SETTINGS)
        self.publications.enter_context(publication)
        assert publication.wait_ready(10)
        return PeerStrategy(identity, 0, registry, SETTINGS)

    def absent(self, tmp_path: Path, registry: str) -> Strategy:
        return PeerStrategy(mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}"), 0, registry, SETTINGS)
