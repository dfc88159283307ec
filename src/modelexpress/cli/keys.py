"""`mx keys`: the keys that vouch for caches of compiled kernels."""

from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(help="Make and show the keys that sign caches of compiled kernels.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="File with the private key.")]


@keys.command()
def new(file: FileArgument) -> None:
    """Make a key pair: the private key goes into a new file, the public one is printed as `mx keys show` does."""
    from modelexpress.artifacts.keys import new_private_key

    typer.echo(f"{new_private_key(file)} {file.stem}")


@keys.command()
def show(file: FileArgument) -> None:
    """Print the public key of a private one, as a line for MX_ARTIFACT_TRUSTED_KEYS: base64, then a comment."""
    from modelexpress.artifacts.signing import Signer

    typer.echo(f"{Signer.from_file(file).public_key} {file.stem}")
