"""The chart of shared experts: what a layer takes, over tokens of a rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dwdp", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402


def draw(path: Path, title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Write an SVG.

    Args:
        path: Where to.
        title: Of the panel.
        lines: For each line its points: tokens a rank, milliseconds of a layer.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for number, (name, points) in enumerate(lines.items()):
        if name.startswith("prefetch"):
            axes.plot(*zip(*points, strict=True), "--", label=name, color="black")
        elif name.endswith("as foreseen"):
            axes.plot(*zip(*points, strict=True), ":", label=name, color="0.4", linewidth=2)
        else:
            axes.plot(*zip(*points, strict=True), "-", label=name, marker=".", color=f"C{number}")
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = sorted({tokens for points in lines.values() for tokens, _ in points})
    axes.set_xticks(ticks, [f"{tokens:,}" for tokens in ticks], rotation=30)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens a rank")
    axes.set_ylabel("milliseconds of a layer, the slowest rank")
    axes.grid(color="0.9")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
