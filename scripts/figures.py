"""The figures of benchmarks/results/ as tables for the documentation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def figure_tables(results: Path, names: Sequence[str]) -> str:
    """Return a table for each of some files of results, with the machine that it was measured on."""
    files = [results / f"{name}.json" for name in names]
    return "\n\n".join(
        _table(json.loads(file.read_text())) if file.exists() else f"`{file.stem}` was not measured: run `make bench`."
        for file in files
    )


def _table(result: dict[str, Any]) -> str:
    machine, figures = result["machine"], result["figures"]
    device = f"{machine.get('devices', 1)} × {machine['device']}, " if "device" in machine else ""
    where = (
        f"Measured on {device}{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, Linux {machine['kernel']}, Python {machine['python']}, "
        f"{machine['date']}; the limits in the same run:"
    )
    lines = ["| what | measured | limit | ratio | target |", "| --- | ---: | --- | ---: | --- |"]
    return "\n".join([where, "", *lines, *(_row(figure) for figure in figures)])


def _row(figure: dict[str, Any]) -> str:
    limit = f"{figure['limit_value']:.3g}: {figure['limit']}" if figure["limit_value"] else figure["limit"]
    ratio = f"{figure['ratio']:.2f}" if figure["ratio"] is not None else ""
    verdict = {None: "", True: ": met", False: ": **missed**"}[figure["met"]]
    cells = (figure["name"], f"{figure['value']:.3g} {figure['unit']}", limit, ratio, f"{figure['target']}{verdict}")
    return f"| {' | '.join(cells)} |"
