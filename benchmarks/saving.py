"""How a benchmark ends: a table for whoever started it, and a file for the documentation."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

RESULTS = Path(__file__).parent / "results"


def show_and_save(
    title: str,
    figures: Sequence[Figure],
    out: Path,
    *,
    machine: Machine | None = None,
    devices: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Print figures as a table, and write them to a file.

    Args:
        title: What was measured, without the machine.
        figures: In the order of the table.
        out: The JSON file.
        machine: Where it was measured, as it was before; None: as it is now.
        devices: What else there is to say of the machine.
        more: What else the file holds.
    """
    machine = machine or Machine.this()
    Console(width=150).print(figure_table(f"{title} on {machine}", figures))
    fields = {
        "machine": {**(devices or {}), **dataclasses.asdict(machine)},
        **more,
        "figures": [figure.fields() for figure in figures],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
