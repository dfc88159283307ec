"""The native strategy does what every strategy must do, as far as it can know what the caller's loader does."""

from pathlib import Path

import torch

from modelexpress.errors import CheckpointError
from modelexpress.weights.strategies import NativeStrategy, Strategy
from tests.conformance.strategy import Sample, StrategyConformance


class TestNativeStrategy(StrategyConformance):
    def good(self, model: Sample, content: dict[str, torch.Tensor], tmp_path: Path, registry: str) -> Strategy:
        return NativeStrategy(lambda: model.load_state_dict(content, strict=False))

    def absent(self, tmp_path: Path, registry: str) -> Strategy:
        def fail() -> None:
            raise CheckpointError("there is nothing to load")

        return NativeStrategy(fail)
