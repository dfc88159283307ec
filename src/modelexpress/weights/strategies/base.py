"""The seam of every way to get weights: a strategy fills a target completely, or raises."""

from abc import ABC, abstractmethod
from typing import ClassVar

from modelexpress.weights.report import Journal
from modelexpress.weights.target import Target


class Strategy(ABC):
    """One way to fill a target. What any of them must do is checked by tests/conformance/strategy.py."""

    name: ClassVar[str]

    @abstractmethod
    def fill(self, target: Target, journal: Journal) -> None:
        """Fill every tensor of the target, verified as far as the source allows.

        The strategy notes its stages, source and bytes in the journal. It sets `target.written` before it
        changes anything of the model, which `Target.open` does for it.

        Raises:
            ModelExpressError: The target was not filled; the message says why.
        """
