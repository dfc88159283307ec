"""`mx trtllm`: TensorRT-LLM checkpoints between nodes."""

import json
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from modelexpress.cli.options import JsonOption, RegistryOption, SourceIdOption

trtllm = typer.Typer(help="Serve and receive checkpoints of TensorRT-LLM, all ranks at once.", no_args_is_help=True)

NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the model, the same at both ends.", show_default="MODEL_NAME")
]


@trtllm.command()
def publish(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A folder that convert_checkpoint made.", show_default="CHECKPOINT_DIR"),
    ] = None,
    name: NameOption = None,
    registry: RegistryOption = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="A file to make when the registry lists every rank, for readiness probes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a checkpoint into memory once and serve every rank of it. Stop it with Ctrl-C or SIGTERM."""
    from modelexpress.cli.ending import clean_up_when_terminated
    from modelexpress.cli.progress import progress_bar
    from modelexpress.engines.trtllm.publisher import MxTrtllmSourcePublisher
    from modelexpress.settings import Settings

    clean_up_when_terminated()
    settings = Settings.read()
    folder = checkpoint or Path(_given(settings.trtllm_checkpoint_dir, "a checkpoint folder", "CHECKPOINT_DIR"))
    model = name or _given(settings.model_name, "--name", "MODEL_NAME")
    stop = threading.Event()
    with ExitStack() as stack:
        with progress_bar(f"reading {folder}") as progress:
            publisher = MxTrtllmSourcePublisher(folder, model, registry, progress=progress, settings=settings)
            stack.enter_context(publisher)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not publisher.wait_ready(0.1):
            if stop.is_set():
                return
        if ready_file is not None:
            _touch(ready_file)
            stack.callback(ready_file.unlink, missing_ok=True)
        ranks = publisher.publications
        if as_json:
            fields = {
                "source_id": ranks[0].source_id,
                "model_name": model,
                "ranks": [{"worker_id": each.worker_id, "endpoint": each.endpoint} for each in ranks],
            }
            typer.echo(json.dumps(fields))
        else:
            typer.echo(f"serving {len(ranks)} ranks of {model} as {ranks[0].source_id}; stop with Ctrl-C")
        stop.wait()


@trtllm.command()
def load(
    name: NameOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Gets the folders checkpoint and engine.", show_default="OUTPUT_DIR")
    ] = None,
    registry: RegistryOption = None,
    source_id: SourceIdOption = None,
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for a source.", show_default="MX_SOURCE_QUERY_TIMEOUT, or 3600"),
    ] = None,
    skip_build: Annotated[bool, typer.Option("--skip-build", help="Receive the checkpoint and build nothing.")] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for trtllm-build, beside or in place of the defaults.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Receive a checkpoint, and build an engine from it with trtllm-build."""
    from modelexpress.cli.ending import clean_up_when_terminated
    from modelexpress.cli.progress import progress_bar
    from modelexpress.engines.trtllm.target import MxTrtllmTargetLoader
    from modelexpress.settings import Settings

    clean_up_when_terminated()
    settings = Settings.read()
    model = name or _given(settings.model_name, "--name", "MODEL_NAME")
    with progress_bar(f"receiving {model}") as progress:
        loader = MxTrtllmTargetLoader(
            model,
            registry,
            out,
            dict(_build_option(text) for text in option or ()),
            wait=wait,
            source_id=source_id,
            progress=progress,
            settings=settings,
        )
        path = loader.load(skip_build=skip_build)
    stats = loader.get_transfer_stats()
    if as_json:
        typer.echo(json.dumps({"path": path, **stats}))
    else:
        rate = stats["bandwidth_gbps"] / 8
        typer.echo(f"{stats['total_bytes'] / 1e9:.3f} GB in {stats['total_time']:.2f} s ({rate:.2f} GB/s)\n{path}")


def _touch(path: Path) -> None:
    from modelexpress.errors import ConfigurationError

    try:
        path.touch()
    except OSError as error:
        raise ConfigurationError(f"cannot create {path}: {error.strerror}; name another file") from error


def _given(value: str, what: str, variable: str) -> str:
    if not value:
        raise typer.BadParameter(f"give {what}, or set {variable}")
    return value


def _build_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"--option takes NAME=VALUE, not {text!r}")
    return name, value
