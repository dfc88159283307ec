"""The chart of docs/fan-out.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fan-out", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Points = Sequence[tuple[int, float]]
TICKS = (1, 2, 4, 8, 16, 32, 64)


def draw(path: Path, compared: Mapping[str, Points], disturbed: Mapping[str, Points]) -> None:
    """Write an SVG with two panels.

    Args:
        path: Where to.
        compared: For each line of the left panel its points (targets, times as long as one).
        disturbed: The same for the right panel.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True, layout="constrained")
    _panel(left, "Undisturbed, all at once", compared)
    _panel(right, "Disturbed", disturbed)
    left.set_ylabel("time until all have it / time of one alone")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _panel(axes: Axes, title: str, lines: Mapping[str, Points]) -> None:
    for number, (name, points) in enumerate(lines.items()):
        style = "--" if name.startswith(("star", "doubling", "optimum")) else "-"
        color = "black" if name == "optimum" else f"C{number}"
        axes.plot(*zip(*points, strict=True), style, label=name, marker="." if style == "-" else "", color=color)
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.9, TICKS[-1])
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    numbers = [targets for targets, _ in next(iter(lines.values()))]
    axes.set_xticks(numbers, [f"{targets:,}" for targets in numbers])
    axes.set_xlabel("targets")
    axes.grid(color="0.9")
    axes.legend(frameon=False, loc="upper left")
