"""What tells two checkpoints of the same name apart, where nobody has named a revision."""

import hashlib
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from modelexpress.errors import CheckpointError
from modelexpress.weights.safetensors_header import parse_header

_SAMPLE_BYTES = 1 << 10
_SPACING_BYTES = 1 << 20
_MOST_SAMPLES = 4096
_THREADS = 16
"""Storage that is far away answers slowly, and many questions at once."""


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hex digits for a checkpoint folder: its configuration, and samples of its weights.

    Of each tensor in a safetensors file the beginning, the middle and the end are looked at, and the header as a whole;
    of other formats as much at regular distances. A training run that changes a tensor changes nearly all of it, so
    one that leaves every sample as it was would have to change very little: MX_MODEL_REVISION tells even that apart.
    Copies of a folder on other hosts have the same fingerprint.

    Raises:
        OSError: A file cannot be read.
    """
    found = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as threads:
        for path in sorted(folder.iterdir()):
            if path.name == "config.json":
                found.update(path.read_bytes())
            elif path.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
                found.update(f"{path.name} {path.stat().st_size}\n".encode())
                _add_samples(found, path, threads)
    return found.hexdigest()[:16]


def _add_samples(found: "hashlib._Hash", path: Path, threads: ThreadPoolExecutor) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for sample in threads.map(partial(_sample, descriptor), _places(path, descriptor)):
            found.update(sample)
    finally:
        os.close(descriptor)


def _sample(descriptor: int, place: tuple[int, int]) -> bytes:
    offset, nbytes = place
    return os.pread(descriptor, nbytes, offset)


def _places(path: Path, descriptor: int) -> list[tuple[int, int]]:
    """Return offsets and sizes of what is looked at."""
    size = os.fstat(descriptor).st_size
    if path.suffix == ".safetensors" and size:
        try:
            with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as content:
                tensors = [(tensor.offset, tensor.nbytes) for tensor in parse_header(content, path)]
            header = min((offset for offset, _ in tensors), default=size)
            return [(0, header), *chain.from_iterable(_of_range(*tensor) for tensor in tensors)]
        except CheckpointError:
            pass  # whoever loads it says what is wrong with it
    step = max(_SPACING_BYTES, size // _MOST_SAMPLES)
    return list(chain.from_iterable(_of_range(offset, min(step, size - offset)) for offset in range(0, size, step)))


def _of_range(offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    if nbytes <= 3 * _SAMPLE_BYTES:
        yield offset, nbytes
        return
    for place in (0, (nbytes - _SAMPLE_BYTES) // 2, nbytes - _SAMPLE_BYTES):
        yield offset + place, _SAMPLE_BYTES
