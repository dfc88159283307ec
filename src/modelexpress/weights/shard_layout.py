"""How the tensors of a checkpoint are laid out in safetensors files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelexpress.errors import CheckpointError
from modelexpress.weights.checkpoint import SINGLE_FILE
from modelexpress.weights.safetensors_header import DATA_ALIGNMENT, build_header
from modelexpress.weights.small_files import listed
from modelexpress.weights.stored_tensor import StoredTensor, TensorEntry


@dataclass(frozen=True)
class Shard:
    """One file to be: its name, its first bytes, its tensors in the order of their bytes."""

    file: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(tensors: Sequence[TensorEntry], shard_bytes: int) -> tuple[Shard, ...]:
    """Cut tensors into files of at most `shard_bytes` of data each, keeping their order.

    A tensor that is larger gets a file of its own. There is at least one file, even without tensors.

    Raises:
        CheckpointError: A name occurs twice, or a tensor cannot be stored in a safetensors file.
    """
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise CheckpointError(f"tensors were given twice: {listed(twice)}; a checkpoint holds each name once")
    groups = list(_cut(tensors, shard_bytes)) or [[]]
    return tuple(_shard(_file_name(index, len(groups)), group) for index, group in enumerate(groups))


def _cut(tensors: Iterable[TensorEntry], shard_bytes: int) -> Iterator[list[TensorEntry]]:
    group: list[TensorEntry] = []
    filled = 0
    for tensor in tensors:
        if group and filled + tensor.nbytes > shard_bytes:
            yield group
            group, filled = [], 0
        group.append(tensor)
        filled += tensor.nbytes
    if group:
        yield group


def _shard(file: Path, group: Iterable[TensorEntry]) -> Shard:
    ordered = sorted(group, key=_alignment, reverse=True)
    header = build_header(ordered)
    placed: list[StoredTensor] = []
    offset = len(header)
    for tensor in ordered:
        placed.append(StoredTensor(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, file, offset))
        offset += tensor.nbytes
    return Shard(file, header, tuple(placed))


def _alignment(tensor: TensorEntry) -> int:
    # The format forbids holes, so only order can align. Sorted by the largest power of two in their sizes,
    # tensors start at multiples of their own power, which is never less than their item size. Nearly all
    # sizes are multiples of 64, so the sort, which is stable, nearly always keeps the given order.
    return min(DATA_ALIGNMENT, tensor.nbytes & -tensor.nbytes) if tensor.nbytes else DATA_ALIGNMENT


def _file_name(index: int, count: int) -> Path:
    return Path(SINGLE_FILE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors")
