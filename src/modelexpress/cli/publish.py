"""`mx publish`: serve a checkpoint folder from host memory until told to stop."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from modelexpress.cli.options import JsonOption, RegistryOption
from modelexpress.identity import SourceIdentity


def publish(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder: safetensors files, configuration, tokenizer.")],
    name: Annotated[
        str | None, typer.Option(help="Name under which targets ask for the model.", show_default="the folder's name")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype in the identity.", show_default="the one in config.json")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Revision in the identity.", show_default="MX_MODEL_REVISION")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="The whole identity as a JSON object, in place of the three options above.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a checkpoint into memory once and serve it to the fleet. Stop it with Ctrl-C or SIGTERM."""
    from modelexpress.cli.progress import progress_bar
    from modelexpress.weights.serve_folder import publish_folder

    chosen = _identity(identity) if identity else _folder_identity(folder, name, dtype, revision)
    with progress_bar(f"reading {folder}") as progress:
        publication = publish_folder(folder, chosen, registry=registry, progress=progress)
    stop = threading.Event()
    with publication:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not publication.wait_ready(0.1):
            if stop.is_set():
                return
        fields = {
            "source_id": publication.source_id,
            "worker_id": publication.worker_id,
            "endpoint": publication.endpoint,
            "model_name": chosen.model_name,
        }
        if as_json:
            typer.echo(json.dumps(fields))
        else:
            typer.echo(
                f"serving {chosen.model_name} as {publication.source_id} at {publication.endpoint}; stop with Ctrl-C"
            )
        stop.wait()


def _identity(text: str) -> SourceIdentity:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--identity is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise typer.BadParameter("--identity must be a JSON object")
    try:
        return SourceIdentity(**fields)
    except TypeError as error:
        raise typer.BadParameter(f"--identity has a field that identities lack: {error}") from error


def _folder_identity(folder: Path, name: str | None, dtype: str | None, revision: str | None) -> SourceIdentity:
    from modelexpress.settings import Settings
    from modelexpress.weights.checkpoint import Checkpoint

    with Checkpoint.open(folder) as checkpoint:
        stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or ""
    return SourceIdentity(
        model_name=name or folder.resolve().name,
        dtype=dtype if dtype is not None else str(stated),
        revision=revision if revision is not None else Settings.read().model_revision,
    )
