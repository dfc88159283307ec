"""Weights in safetensors files: written once, read to the device in the library's two ways, again and again."""

from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.beside.children import say
from benchmarks.beside.tensors import (
    REPETITIONS,
    Tensors,
    allocate,
    arrived,
    chosen_shapes,
    common_options,
    fill,
    seconds,
    warm_up,
)
from benchmarks.shapes import Shapes

_SHARD_BYTES = 5_000_000_000
"""As published checkpoints are cut."""


def write(folder: Path, tensors: Tensors) -> None:
    """Write tensors into files of the usual size."""
    for number, names in enumerate(_shards(tensors)):
        save_file({name: tensors[name].cpu() for name in names}, folder / f"model-{number:05}.safetensors")


def _shards(tensors: Tensors) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def with_load_file(folder: Path, device: str) -> Tensors:
    """Return every tensor, by one call a file."""
    tensors: Tensors = {}
    for path in sorted(folder.iterdir()):
        tensors |= load_file(path, device=device)
    return tensors


def with_safe_open(folder: Path, device: str) -> Tensors:
    """Return every tensor, one by one."""
    tensors: Tensors = {}
    for path in sorted(folder.iterdir()):
        with safe_open(path, framework="pt", device=device) as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


WAYS: dict[str, Callable[[Path, str], Tensors]] = {"load_file": with_load_file, "safe_open": with_safe_open}


def read(folder: Path, way: str, device: str, shapes: Shapes) -> None:
    """Read everything several times and say what each time took."""
    warm_up(device)
    found, tensors = [], Tensors()
    for _ in range(REPETITIONS + 1):
        tensors.clear()  # torch's allocator keeps the memory for the next time
        found.append(seconds(lambda: tensors.update(WAYS[way](folder, device)), device))
    say(seconds=found, right=arrived({name: tensors[name] for name in shapes}))


def main() -> None:
    """Write the files, or read them."""
    parser = common_options()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--way", choices=list(WAYS), help="without it the files are written")
    given = parser.parse_args()
    shapes = chosen_shapes(given)
    if given.way:
        read(given.folder, given.way, given.device, shapes)
        return
    tensors = allocate(shapes, given.device)
    fill(tensors)
    write(given.folder, tensors)
    say(written=sum(path.stat().st_size for path in given.folder.iterdir()))


if __name__ == "__main__":
    main()
