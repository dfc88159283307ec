"""`mx plan`: what a load would read from where, moving nothing."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelexpress.cli.options import JsonOption, RegistryOption, SourceIdOption
from modelexpress.cli.printable import printable


def plan(
    model: Annotated[str, typer.Argument(help="Name of the model, as its sources gave it.")],
    registry: RegistryOption = None,
    source_id: SourceIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would be read, from where, over what, and about how long it would take; nothing is moved."""
    from modelexpress.weights.foresee import Prospect, plan_folder

    foreseen = plan_folder(model, registry=registry, source_id=source_id)
    if as_json:
        typer.echo(foreseen.json())
        return

    def row(prospect: Prospect) -> tuple[Text, ...]:
        chosen = "→" if prospect is foreseen.choice else ""
        estimate = f"{prospect.seconds:.2f} s" if prospect.seconds else "unknown"
        rate = f"{prospect.bytes_per_second / 1e9:.1f} GB/s" if prospect.bytes_per_second else "unknown"
        size = f"{prospect.nbytes / 1e9:.3f} GB in {prospect.tensors}"
        why = "\n".join(prospect.reasons)
        cells = (chosen, prospect.worker_id, prospect.endpoint, prospect.transport, size, rate, estimate, why)
        return tuple(Text(printable(cell)) for cell in cells)

    table = Table(title=Text(f"sources of {foreseen.wanted}, in the order in which they would be asked"))
    for title in ("", "worker", "endpoint", "transport", "tensors", "limit", "at the limit", "notes"):
        table.add_column(title, overflow="fold")
    for prospect in foreseen.prospects:
        table.add_row(*row(prospect))
    Console().print(table)
