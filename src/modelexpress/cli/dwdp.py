"""`mx dwdp`: groups of ranks that share the experts of a model; `plan` foresees one."""

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console, Group

from modelexpress.cli.dwdp_table import bars, rank_table
from modelexpress.cli.options import JsonOption
from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.config_shapes import depth_of_config, shape_of_config, work_of_config
from modelexpress.dwdp.foresee import H200_BANDWIDTH, H200_FLOPS, H200_MEMORY_BANDWIDTH, Speed, foresee
from modelexpress.dwdp.header_shapes import Stored, layers_of_tensors
from modelexpress.dwdp.shapes import LayerShape, ModelShape, Work, carried_bytes, gated_experts, gated_flop
from modelexpress.errors import ConfigurationError

dwdp = typer.Typer(help="Ranks that share the experts of a model while they run.", no_args_is_help=True)


@dwdp.callback()
def _group() -> None:
    """Keep `plan` a command of its own, though it is the only one."""


@dwdp.command()
def plan(
    folder: Annotated[
        Path | None, typer.Argument(help="Model folder with config.json, and safetensors files where they are there.")
    ] = None,
    dwdp_size: Annotated[int, typer.Option(help="Ranks of a group, N.")] = 4,
    num_experts_per_worker: Annotated[
        int | None, typer.Option(help="Experts that a rank stores, L.", show_default="as few as possible")
    ] = None,
    num_prefetch_experts: Annotated[
        int | None, typer.Option(help="From one rank's first expert to the next one's, S.", show_default="as L demands")
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(help="Experts of a layer; with the next four options in place of FOLDER, without attention then."),
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Features of a token.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="Features within an expert.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers with experts.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts that a token goes through.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the experts.", show_default="as the folder says, else bfloat16")
    ] = None,
    bandwidth: Annotated[
        float,
        typer.Option(help="GB/s that a rank gets from all peers: four H200s over NVLink, a stream for each peer."),
    ] = H200_BANDWIDTH / 1e9,
    tflops: Annotated[
        float, typer.Option(help="TFLOP/s of a rank: grouped matrix products in bfloat16 on an H200.")
    ] = H200_FLOPS / 1e12,
    memory_bandwidth: Annotated[
        float, typer.Option(help="TB/s of a rank's own memory: an H200's, by its data sheet.")
    ] = H200_MEMORY_BANDWIDTH / 1e12,
    measured: Annotated[
        str | None,
        typer.Option(help="TOKENS:MILLISECONDS that a layer took, attention included: times are scaled to that."),
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt, for attention's scores; 0: left out.")] = 0,
    chart: Annotated[Path | None, typer.Option(help="Write the chart to this file, an SVG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who would hold what, how much memory that takes, and from how many tokens on fetching is hidden."""
    shapes = _Shapes(experts, hidden, intermediate, layers, top_k)
    shape = _shape_of_folder(folder, shapes, dtype) if folder else _shape_of_options(shapes, dtype or "bfloat16")
    config = _config(shape.layers[0].num_experts, dwdp_size, num_experts_per_worker, num_prefetch_experts)
    speed = Speed(bandwidth * 1e9, tflops * 1e12, _measured(measured), prompt, memory_bandwidth * 1e12)
    foreseen = foresee(shape, config, speed)
    if chart is not None:
        from modelexpress.dwdp.foresight_chart import draw_foresight

        draw_foresight(chart, foreseen)
    if as_json:
        typer.echo(json.dumps(foreseen.fields()))
    else:
        Console().print(Group(rank_table(foreseen), bars(foreseen)))


class _Shapes(NamedTuple):
    """The options that stand for a folder."""

    experts: int | None
    hidden: int | None
    intermediate: int | None
    layers: int | None
    top_k: int | None


def _shape_of_options(shapes: _Shapes, dtype: str) -> ModelShape:
    missing = [f"--{name.replace('_', '-')}" for name, value in shapes._asdict().items() if value is None]
    if missing:
        raise ConfigurationError(f"name a model folder, or give {', '.join(missing)} as well")
    experts, hidden, intermediate, layers, top_k = (value or 0 for value in shapes)
    if min(experts, layers, top_k) < 1:
        raise ConfigurationError(f"{experts} experts in {layers} layers, {top_k} for a token: each is at least 1")
    tensors = gated_experts(hidden, intermediate, dtype)
    return ModelShape(
        f"options, {dtype}",
        tuple(LayerShape(number, experts, tensors) for number in range(layers)),
        _work(hidden, intermediate, top_k),
    )


def _work(hidden: int, intermediate: int, top_k: int) -> Work:
    """Return what is known without the shapes of attention."""
    row, carried = gated_flop(hidden, intermediate, 1), carried_bytes(hidden, top_k * intermediate, top_k)
    return Work(top_k * row, routed=top_k, row=row, carried=carried)


def _shape_of_folder(folder: Path, shapes: _Shapes, dtype: str | None) -> ModelShape:
    if any(value is not None for value in shapes):
        raise ConfigurationError(f"{folder} says what shapes there are: leave --experts to --top-k out, or the folder")
    from modelexpress.weights.checkpoint import Checkpoint
    from modelexpress.weights.small_files import read_json_object

    config = read_json_object(folder / "config.json")
    if dtype is not None or not any(folder.glob("*.safetensors")):
        return shape_of_config(config, dtype)
    count = shape_of_config(config, "bfloat16").layers[0].num_experts
    with Checkpoint.open(folder) as checkpoint:
        stored = (Stored(one.name, one.shape, one.nbytes) for one in checkpoint.tensors.values())
        layers = layers_of_tensors(stored, count, depth_of_config(config))
    if not layers:
        return shape_of_config(config)
    return ModelShape(f"the safetensors files of {folder.name}", layers, work_of_config(config))


def _config(num_experts: int, size: int, per_worker: int | None, stride: int | None) -> DwdpConfig:
    if per_worker is None and stride is None:
        return DwdpConfig.spreading(num_experts, size)
    if per_worker is None:
        raise ConfigurationError("--num-prefetch-experts needs --num-experts-per-worker beside it")
    if stride is None:
        # The last rank must end with the last expert; what does not divide is refused by the configuration, in words.
        stride = max(1, (num_experts - per_worker) // max(1, size - 1))
    return DwdpConfig(size, per_worker, stride)


def _measured(text: str | None) -> tuple[int, float] | None:
    if text is None:
        return None
    tokens, _, milliseconds = text.partition(":")
    try:
        return int(tokens), float(milliseconds) / 1000
    except ValueError:
        raise ConfigurationError(f"--measured {text!r} is not TOKENS:MILLISECONDS, such as 8192:1.28") from None
