"""A figure: a measured value beside the limit that it is compared with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of a table of measurements.

    Args:
        name: What was measured.
        value: How much it is.
        unit: Of the value and the limit.
        limit: What the value is compared with; empty where it is a limit itself.
        limit_value: How much that is.
        target: What is aimed at, for people.
        met: Whether that was reached; None without a target.
        note: What else a reader should know.
    """

    name: str
    value: float
    unit: str
    limit: str = ""
    limit_value: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Value over limit."""
        return self.value / self.limit_value if self.limit_value else None

    def fields(self) -> dict[str, Any]:
        """Return the figure as an object for JSON."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def figure_table(title: str, figures: Sequence[Figure]) -> Table:
    """Return a table of figures for a terminal."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "measured", "limit", "ratio", "target"):
        table.add_column(heading, justify="left" if heading in ("what", "limit") else "right", overflow="fold")
    for figure in figures:
        limit = f"{figure.limit_value:.2f}: {figure.limit}" if figure.limit_value else figure.limit
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        verdict = "" if figure.met is None else " met" if figure.met else " missed"
        table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", limit, ratio, f"{figure.target}{verdict}")
    return table
