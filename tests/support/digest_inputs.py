"""Inputs of digests that tests of several implementations share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Column = npt.NDArray[np.uint64]

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "digest_vectors.json").read_text())


def column(*numbers: int) -> Column:
    return np.array(numbers, dtype=np.uint64)


def random_bytes(length: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def vector_bytes(pattern: str, length: int) -> bytes:
    """The inputs that digest_vectors.json describes."""
    if pattern == "zeros":
        return bytes(length)
    if pattern == "ones":
        return b"\xff" * length
    words = np.arange(1, length // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return words.astype("<u8").tobytes()[:length]
