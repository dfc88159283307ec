"""The storage strategy does what every strategy must do."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from modelexpress.weights.strategies import StorageStrategy, Strategy
from tests.conformance.strategy import CheckedStrategyConformance, Sample


class TestStorageStrategy(CheckedStrategyConformance):
    def good(self, model: Sample, content: dict[str, torch.Tensor], tmp_path: Path, registry: str) -> Strategy:
        tmp_path.mkdir(exist_ok=True)
        save_file(content, tmp_path / "model.safetensors")
        return StorageStrategy(tmp_path)

    def absent(self, tmp_path: Path, registry: str) -> Strategy:
        return StorageStrategy(tmp_path / "missing")
