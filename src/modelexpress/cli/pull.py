"""`mx pull`: write a checkpoint folder from what a peer holds."""

from pathlib import Path
from typing import Annotated

import typer

from modelexpress.cli.options import JsonOption, RegistryOption, SourceIdOption


def pull(
    model: Annotated[str, typer.Argument(help="Name of the model, as its sources gave it.")],
    out: Annotated[Path, typer.Option(help="The folder to create.")],
    registry: RegistryOption = None,
    source_id: SourceIdOption = None,
    shard_bytes: Annotated[int, typer.Option(min=1, help="Bytes of tensors in one file at most.")] = 5 * 10**9,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Get a complete, loadable checkpoint folder from a peer. It appears when every byte is verified, or not at all."""
    from modelexpress.cli.ending import clean_up_when_terminated
    from modelexpress.cli.printable import printable
    from modelexpress.cli.progress import progress_bar
    from modelexpress.weights.pull_folder import pull_folder

    clean_up_when_terminated()
    with progress_bar(f"pulling {model}") as progress:
        report = pull_folder(
            model,
            out,
            registry=registry,
            source_id=source_id,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(report.json() if as_json else printable(f"{report}\nwritten to {out}"))
