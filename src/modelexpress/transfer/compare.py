"""Comparison of what a source holds with what a target wants, both ways, before one byte moves."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelexpress.errors import ManifestMismatch
from modelexpress.transfer.manifest import Manifest
from modelexpress.wire.records import TensorSpec

_SHOWN = 5


@dataclass(frozen=True)
class Wanted:
    """A tensor that a target has room for.

    Args:
        name: As in the source's manifest.
        dtype: Name of the dtype, without a package prefix.
        shape: Sizes in elements.
        nbytes: Size in bytes.
        memory: Tensors of one target with the same number are one and the same memory (tied weights).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    memory: int


def compare(manifest: Manifest, wanted: Sequence[Wanted]) -> None:
    """Check that source and target agree on every tensor.

    A name that the source lacks is satisfied by another name of the same memory. Tensors that the target ties must
    be equal at the source.

    Raises:
        ManifestMismatch: With the names that are missing, unexpected or different.
    """
    names = {tensor.name for tensor in wanted}
    present = {tensor.memory for tensor in wanted if tensor.name in manifest.index}
    missing = [t.name for t in wanted if t.name not in manifest.index and t.memory not in present]
    unexpected = [name for name in manifest.index if name not in names]
    different = [reason for tensor in wanted if (reason := _difference(manifest, tensor))]
    different += _untied(manifest, wanted)
    if missing or unexpected or different:
        raise ManifestMismatch(
            _summary(missing, unexpected, different),
            missing=missing,
            unexpected=unexpected,
            different=different,
        )


def _difference(manifest: Manifest, wanted: Wanted) -> str:
    position = manifest.index.get(wanted.name)
    if position is None:
        return ""
    held = manifest.tensors[position]
    if (held.dtype, held.shape, held.nbytes) == (wanted.dtype, wanted.shape, wanted.nbytes):
        return ""
    return f"'{wanted.name}' is {_describe(held)} at the source, {_describe(wanted)} at the target"


def _describe(tensor: TensorSpec | Wanted) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} of {tensor.nbytes} bytes"


def _untied(manifest: Manifest, wanted: Sequence[Wanted]) -> list[str]:
    """Return a sentence for each pair that is one memory at the target but has two values at the source."""
    groups: dict[int, list[str]] = defaultdict(list)
    for tensor in wanted:
        if tensor.name in manifest.index:
            groups[tensor.memory].append(tensor.name)
    reasons = []
    for first, *others in groups.values():
        for other in others:
            left, right = manifest.index[first], manifest.index[other]
            if not np.array_equal(manifest.tensor_digests(left), manifest.tensor_digests(right)):
                reasons.append(f"'{first}' and '{other}' are tied at the target, but differ at the source")
    return reasons


def _summary(missing: Sequence[str], unexpected: Sequence[str], different: Sequence[str]) -> str:
    parts = []
    if missing:
        parts.append(f"the source lacks {len(missing)} tensors ({_some(missing)})")
    if unexpected:
        parts.append(f"the target lacks {len(unexpected)} tensors ({_some(unexpected)})")
    if different:
        parts.append(f"{len(different)} tensors differ ({_some(different)})")
    return (
        "source and target do not hold the same tensors: "
        + "; ".join(parts)
        + ". Nothing was changed. Give models that differ different identities"
    )


def _some(items: Sequence[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
