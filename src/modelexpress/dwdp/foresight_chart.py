"""A foresight as a chart: the memory of each rank, and computing against fetching."""

from pathlib import Path
from typing import Any

from modelexpress.dwdp.chart import charted
from modelexpress.dwdp.foresee import TOKENS, Foresight


def draw_foresight(path: Path, foreseen: Foresight) -> None:
    """Write two panels: bytes a rank, and seconds a layer over the tokens of a forward.

    Args:
        path: Where to, an SVG.
        foreseen: What is drawn.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file cannot be written.
    """
    with charted(path, (9.6, 4.0), "foresight") as figure:
        left, right = figure.subplots(1, 2)
        _memory(left, foreseen)
        _times(right, foreseen)


def _memory(axes: Any, foreseen: Foresight) -> None:
    names = [f"rank {needs.rank}" for needs in foreseen.ranks]
    stored = [(needs.own + needs.small) / 1e9 for needs in foreseen.ranks]
    slots = [needs.slots / 1e9 for needs in foreseen.ranks]
    axes.bar(["without"], [foreseen.everything / 1e9], color="0.7", label="all experts")
    axes.bar(names, stored, color="C0", label="stored")
    axes.bar(names, slots, bottom=stored, color="C1", label="slots")
    axes.set_title("Memory for experts")
    axes.set_ylabel("GB")
    axes.legend(frameon=False)


def _times(axes: Any, foreseen: Foresight) -> None:
    fetch, crossing = foreseen.fetch_seconds * 1e3, foreseen.hidden_from
    computing = [foreseen.compute_seconds(tokens) for tokens in TOKENS]
    axes.axhline(fetch, color="C1", label=f"fetching, {foreseen.speed.bandwidth / 1e9:g} GB/s")
    axes.set_title("Time of a layer")
    axes.set_xlabel("tokens of a rank's forward")
    axes.set_ylabel("milliseconds")
    axes.set_xscale("log", base=2)
    axes.set_xticks(TOKENS, [f"{tokens // 1024}K" for tokens in TOKENS])
    if crossing:
        axes.set_yscale("log")
        named = "computing" if foreseen.attention_counted else "computing, without attention"
        axes.plot(TOKENS, [1e3 * (seconds or 0.0) for seconds in computing], color="C0", marker=".", label=named)
        axes.axvline(crossing, color="0.5", linestyle="--", label=f"hidden from {crossing:,} tokens on")
    axes.grid(color="0.9")
    axes.legend(loc="lower right", edgecolor="none", framealpha=1)
