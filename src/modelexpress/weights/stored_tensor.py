"""A tensor as a checkpoint file describes it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorEntry:
    """One tensor that a checkpoint holds or shall hold, dense and in row-major order.

    Args:
        name: Name of the parameter or buffer.
        dtype: torch's name without "torch.", such as "bfloat16".
        shape: Elements in each dimension, as torch counts them.
        nbytes: Bytes of the whole tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class StoredTensor(TensorEntry):
    """A tensor and its place.

    Args:
        file: The safetensors file, relative to the checkpoint folder.
        offset: Bytes from the beginning of the file to the tensor's first byte.
    """

    file: Path
    offset: int
