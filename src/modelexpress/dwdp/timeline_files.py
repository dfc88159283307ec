"""A timeline as a chart, and as a trace."""

import json
from collections.abc import Sequence
from pathlib import Path

from modelexpress.dwdp.chart import charted
from modelexpress.dwdp.pages import slot_of
from modelexpress.dwdp.timeline_spans import Kind, Span, summarised

_STYLES = {
    Kind.COMPUTE: ("experts", "C0"),
    Kind.BETWEEN: ("attention, and what else is between", "0.8"),
    Kind.WAIT: ("waits for experts", "C3"),
}
_SLOTS = (("fetches into slot 0", "C1"), ("fetches into slot 1", "C2"))
_ROOM = 0.015
"""Part of a chart's width that a number needs."""


def draw_spans(path: Path, spans: Sequence[Span]) -> None:
    """Write computing and fetching above each other.

    Args:
        path: Where to, an SVG.
        spans: Of one rank.

    Raises:
        DwdpError: There are none.
        ConfigurationError: matplotlib is not installed.
    """
    summary = summarised(spans)
    with charted(path, (9.6, 2.8), "timeline") as figure:
        axes = figure.subplots()
        named = set[str]()
        end = max(span.end for span in spans)
        for span in spans:
            row = (0.0, 0.8) if span.kind is Kind.FETCH else (1.0, 0.8)
            name, color = _SLOTS[slot_of(span.position)] if span.kind is Kind.FETCH else _STYLES[span.kind]
            part = [(span.start * 1e3, span.seconds * 1e3)]
            label = name if name not in named else None
            named.add(name)
            axes.broken_barh(part, row, facecolor=color, edgecolor="white", linewidth=0.3, label=label)
            if span.kind in (Kind.COMPUTE, Kind.FETCH) and span.seconds > _ROOM * end:
                middle = (span.start + span.end) / 2 * 1e3
                axes.text(middle, row[0] + 0.4, str(span.position), ha="center", va="center", size=7, color="white")
        axes.set_yticks([0.4, 1.4], ["fetch", "compute"])
        axes.set_xlim(0, end * 1e3)
        axes.set_xlabel("milliseconds")
        axes.set_title(f"{summary.overlap:.0%} of fetching is hidden; numbers are layers with experts", size=9)
        axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.25))


def write_trace(path: Path, spans: Sequence[Span], rank: int) -> None:
    """Write the spans as complete events of the Trace Event Format, times in microseconds.

    Args:
        path: Where to, JSON.
        spans: Of one rank.
        rank: Shown as a process.
    """
    threads = {"compute": 0, "fetch": 1}
    names = [{"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}]
    names += [
        {"name": "thread_name", "ph": "M", "pid": rank, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events = [
        {
            "name": f"{span.kind} {span.position}",
            "cat": str(span.kind),
            "ph": "X",
            "ts": span.start * 1e6,
            "dur": span.seconds * 1e6,
            "pid": rank,
            "tid": threads["fetch" if span.kind is Kind.FETCH else "compute"],
            "args": {"forward": span.forward, "layer": span.position},
        }
        for span in spans
    ]
    path.write_text(json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms"}))
