"""`mx bench`: how fast weights move on this machine, and how fast they could."""

import dataclasses
import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from modelexpress.cli.ending import clean_up_when_terminated
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine, available_bytes
from modelexpress.cli.options import JsonOption
from modelexpress.cli.sizes import parse_bytes
from modelexpress.errors import ConfigurationError

_COPIES = 3
"""Times that the bytes are in memory at once: at the source, at the target, and to compare with."""


class Choice(Enum):
    """What `--transport` takes."""

    LOCAL = "local"
    TCP = "tcp"
    ALL = "all"

    @property
    def names(self) -> tuple[str, ...]:
        """The transports that are meant."""
        return ("local", "tcp") if self is Choice.ALL else (self.value,)


def bench(
    size: Annotated[str, typer.Option("--bytes", help="How much one load moves.")] = "1GiB",
    tensors: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many tensors that is.")] = 300,
    transport: Annotated[Choice, typer.Option(help="What the bytes travel over.")] = Choice.ALL,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object to this file, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure memory and loads between two processes of this machine, each beside the limit it could reach."""
    from modelexpress.cli.bench_runs import measure_memory, measure_peers

    nbytes = parse_bytes(size)
    if _COPIES * nbytes > available_bytes():
        raise ConfigurationError(
            f"--bytes {size} needs {_COPIES} times as much memory, and {available_bytes() / 2**30:.1f} GiB are free"
        )
    machine = Machine.this()
    clean_up_when_terminated()
    with Console(stderr=True).status("starting") as status:
        figures = [*measure_memory(nbytes, status.update)]
        figures += measure_peers(nbytes, tensors, transport.names, status.update)
    text = json.dumps(_fields(machine, nbytes, tensors, figures), indent=None if as_json else 1)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
    else:
        Console().print(figure_table(f"{size} in {tensors} tensors on {machine}", figures))


def _fields(machine: Machine, nbytes: int, tensors: int, figures: Sequence[Figure]) -> dict[str, object]:
    return {
        "machine": dataclasses.asdict(machine),
        "bytes": nbytes,
        "tensors": tensors,
        "figures": [figure.fields() for figure in figures],
    }
