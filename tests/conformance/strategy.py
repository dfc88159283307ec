"""What every strategy must do. A strategy's test file subclasses this and says where the weights come from.

The weights are real: a source over real sockets, a checkpoint folder, a function that fills the model.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from modelexpress.errors import LoadError, ModelExpressError, PartialModel
from modelexpress.weights.load import run_strategies
from modelexpress.weights.report import COPY, Journal
from modelexpress.weights.strategies import Strategy
from modelexpress.weights.target import Target

WIDTH = 32
FILL = 0.5
"""What a target holds before it is filled, and no checkpoint does."""


class Sample(nn.Module):
    """A small module with tied weights, a persistent buffer, and an order of elements that is not the usual one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.head = nn.Linear(width, 16, bias=False)
        self.head.weight = self.embed.weight
        self.transposed = nn.Parameter(torch.rand(8, width).t())
        self.register_buffer("count", torch.arange(3))


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return what a `Sample` shall be filled with, by name; tied weights under their first name only."""
    torch.manual_seed(seed)
    state = Sample().state_dict()
    del state["head.weight"]
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def empty(device: str = "cpu", width: int = WIDTH) -> Sample:
    """Return a module to be filled."""
    with torch.device(device):
        model = Sample(width)
    if device == "cpu":
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(FILL)
    return model


def holds(model: Sample, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether every tensor of a module is what was expected."""
    state = model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items())


class StrategyConformance(ABC):
    """What holds also for a strategy that calls code which fills the model in ways of its own."""

    @abstractmethod
    def good(self, model: Sample, content: dict[str, torch.Tensor], tmp_path: Path, registry: str) -> Strategy:
        """Return a strategy that delivers `content` into `model`."""

    @abstractmethod
    def absent(self, tmp_path: Path, registry: str) -> Strategy:
        """Return a strategy that has nothing to deliver and finds that out before it writes."""

    def test_it_has_a_name(self, tmp_path: Path, registry: str) -> None:
        assert type(self.absent(tmp_path, registry)).name in ("peer", "storage", "native")

    def test_it_fills_a_model_in_place(self, tmp_path: Path, registry: str) -> None:
        model, content = empty(), weights()
        addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        target = Target(model)
        self.good(model, content, tmp_path, registry).fill(target, Journal())
        assert holds(model, content)
        assert target.written
        assert model.head.weight is model.embed.weight
        assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == addresses

    def test_it_times_the_copy(self, tmp_path: Path, registry: str) -> None:
        model, journal = empty(), Journal()
        self.good(model, weights(), tmp_path, registry).fill(Target(model), journal)
        assert [stage.name for stage in journal.stages].count(COPY) == 1
        assert all(stage.seconds > 0 for stage in journal.stages)

    def test_without_weights_it_says_why_and_changes_nothing(self, tmp_path: Path, registry: str) -> None:
        model = empty()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ModelExpressError) as caught:
            self.absent(tmp_path, registry).fill(Target(model), Journal())
        assert str(caught.value)
        assert holds(model, before)

    def test_the_next_strategy_overwrites_all_of_what_this_one_did(self, tmp_path: Path, registry: str) -> None:
        model = empty()
        for seed in (1, 2):
            strategy = self.good(model, weights(seed), tmp_path / str(seed), registry)
            strategy.fill(Target(model), Journal())
            assert holds(model, weights(seed))

    def test_failing_last_it_is_one_of_the_causes(self, tmp_path: Path, registry: str) -> None:
        strategies = [self.absent(tmp_path / str(number), registry) for number in range(2)]
        with pytest.raises(LoadError) as caught:
            run_strategies(Target(empty()), strategies, Journal())
        assert len(caught.value.causes) == 2


class CheckedStrategyConformance(StrategyConformance):
    """What holds for a strategy that knows what it delivers, and writes through the target."""

    def test_it_gives_a_model_without_memory_its_memory(self, tmp_path: Path, registry: str) -> None:
        model, content = empty("meta"), weights()
        target = Target(model)
        self.good(model, content, tmp_path, registry).fill(target, Journal())
        assert holds(model, content)
        assert model.head.weight is model.embed.weight
        assert not target.written, "nothing of the caller's was overwritten"

    def test_it_notes_its_source_and_bytes(self, tmp_path: Path, registry: str) -> None:
        model = empty()
        seen: list[tuple[int, int]] = []
        journal = Journal(lambda done, total: seen.append((done, total)))
        self.good(model, weights(), tmp_path, registry).fill(Target(model), journal)
        expected = sum(tensor.nbytes for tensor in weights().values())
        assert journal.source
        assert journal.nbytes == expected
        assert seen == sorted(seen)
        assert seen[-1] == (expected, expected)

    def test_without_weights_nothing_counts_as_written(self, tmp_path: Path, registry: str) -> None:
        target = Target(empty())
        with pytest.raises(ModelExpressError):
            run_strategies(target, [self.absent(tmp_path, registry)], Journal())
        assert not target.written

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_what_is_broken_off_in_the_middle_is_never_half_a_model(
        self, tmp_path: Path, registry: str, device: str
    ) -> None:
        model = empty(device)
        target = Target(model)

        def break_off(done: int, total: int) -> None:
            assert target.written is (device == "cpu"), "said before the first byte is overwritten"
            raise ModelExpressError("broken off")

        strategy = self.good(model, weights(), tmp_path, registry)
        with pytest.raises(ModelExpressError, match="broken off") as caught:
            run_strategies(target, [strategy], Journal(break_off))
        assert isinstance(caught.value, PartialModel) is (device == "cpu")
        assert all(tensor.is_meta for tensor in model.parameters()) is (device == "meta")

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_model_of_other_shapes_is_refused_unchanged(self, tmp_path: Path, registry: str, device: str) -> None:
        self._refused(empty(device, width=WIDTH + 1), r"embed\.weight", tmp_path, registry)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_model_with_a_tensor_more_is_refused_unchanged(self, tmp_path: Path, registry: str, device: str) -> None:
        model = empty(device)
        model.extra = nn.Parameter(torch.full((3,), FILL, device=device))
        self._refused(model, "extra", tmp_path, registry)

    def _refused(self, model: Sample, name: str, tmp_path: Path, registry: str) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}
        metas = [parameter.is_meta for parameter in model.parameters()]
        target = Target(model)
        with pytest.raises(ModelExpressError, match=name):
            self.good(model, weights(), tmp_path, registry).fill(target, Journal())
        assert not target.written
        assert [parameter.is_meta for parameter in model.parameters()] == metas
        assert holds(model, before)
