"""One checkpoint folder, loaded in several ways, from a cold and from a warm page cache."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.folder_load import WAYS
from modelexpress.cli.bench_runs import Say
from modelexpress.cli.child import Child, child, private_registry
from modelexpress.cli.demo_model import Scale, build_demo_model
from modelexpress.cli.figure import Figure

COLD = "cold"
WARM = "warm"


def compare_folder(place: Path, scale: Scale, rounds: int, say: Say) -> Iterator[Figure]:
    """Yield the seconds that each way takes for the demonstration checkpoint.

    Args:
        place: Where the checkpoint is built.
        scale: Its size.
        rounds: Loads of which the fastest counts; one more before them does not.
        say: Told what happens.
    """
    say("building a checkpoint folder")
    folder = build_demo_model(place / "model", scale=scale)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    with ExitStack() as stack:
        registry = stack.enter_context(private_registry())
        source = ("-m", "modelexpress.cli.bench_source", registry, "--folder", folder)
        stack.enter_context(child(*source)).answer()
        for way, what in WAYS.items():
            with child("-m", "benchmarks.folder_load", way, folder, registry) as process:
                for cache in (COLD, WARM) if what.reads_files else (WARM,):
                    say(f"{what.name}, {cache} page cache")
                    seconds = _fastest(process, folder, cache, rounds)
                    note = f"{cache} page cache" if what.reads_files else "files are not read"
                    yield Figure(f"{size:.2f} GB folder: {what.name}, {note}", seconds, "s")


def _fastest(process: Child, folder: Path, cache: str, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        if cache == COLD:
            forget(folder)
        process.tell()
        seconds.append(float(process.line()))
    return min(seconds[1:])


def forget(folder: Path) -> None:
    """Drop the files of a folder from this machine's page cache; its host may still have them in its own."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not on disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
