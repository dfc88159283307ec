"""Weights by the caller's own loader: the last resort."""

from collections.abc import Callable
from dataclasses import dataclass

from modelexpress.weights.report import COPY, Journal
from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.target import Target


@dataclass(frozen=True)
class NativeStrategy(Strategy):
    """Calls a function that fills the whole model in its own way.

    Args:
        loader: Fills every tensor of the model that was given to `load`, or raises.
    """

    name = "native"
    loader: Callable[[], object]

    def fill(self, target: Target, journal: Journal) -> None:
        """Call the loader; what it raises goes to the caller of `load` as it is."""
        target.written = True
        with journal.stage(COPY):
            self.loader()
