"""Options that several commands share."""

from typing import Annotated

import typer

RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", help="HOST:PORT of the registry.", show_default="MODEL_EXPRESS_URL, or localhost:8001"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
SourceIdOption = Annotated[
    str | None, typer.Option(help="Which of several identities of that name is meant.", show_default="the only one")
]
