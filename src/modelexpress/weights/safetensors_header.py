"""The header of a safetensors file, parsed without trust and built.

Format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length as little-endian integer;
the header, a JSON object that maps each tensor's name to its dtype, shape and data_offsets (first and last
byte + 1, counted from the end of the header), padded with spaces; then the tensors' bytes, without holes.
"""

import json
from collections.abc import Iterable, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any

from modelexpress.errors import CheckpointError
from modelexpress.weights.dtypes import TYPE_BY_NAME, TYPE_BY_TAG, StoredType
from modelexpress.weights.small_files import damaged, parse_json_object
from modelexpress.weights.stored_tensor import StoredTensor, TensorEntry

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
DATA_ALIGNMENT = 64  # bytes; one cache line, and at least every element type's own alignment
METADATA_KEY = "__metadata__"


def parse_header(content: bytes | mmap, file: Path, nbytes: int | None = None) -> tuple[StoredTensor, ...]:
    """Return the tensors of a safetensors file in the order of their bytes.

    Args:
        content: The whole file, or its beginning up to the first tensor.
        file: Its name, for the result and for messages.
        nbytes: Of the whole file, where `content` is less.

    Raises:
        CheckpointError: The content is not that of a complete safetensors file. Everything is checked: lengths
            against the file, sizes against shapes and dtypes, and that tensors neither overlap nor leave
            holes.
    """
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    data_start = LENGTH_BYTES + length
    if len(content) < LENGTH_BYTES or data_start > len(content):
        raise damaged(file, f"the header should end at byte {data_start} and the file at {len(content)}")
    if length > HEADER_LIMIT:
        raise damaged(file, f"a header of {length} bytes is beyond the format's limit of {HEADER_LIMIT}")
    header = parse_json_object(content[LENGTH_BYTES:data_start], file)
    _check_metadata(header.pop(METADATA_KEY, None), file)
    tensors = [_parse_tensor(name, fields, data_start, file) for name, fields in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_contiguous(tensors, data_start, len(content) if nbytes is None else nbytes, file)
    return tuple(tensors)


def build_header(tensors: Sequence[TensorEntry]) -> bytes:
    """Return length and header of a file that holds `tensors` in this order, padded to `DATA_ALIGNMENT`.

    Raises:
        CheckpointError: A tensor has a name, dtype or size that a safetensors file cannot hold.
    """
    # "format" tells transformers which framework's conventions the tensors follow.
    fields: dict[str, Any] = {METADATA_KEY: {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        stored = checked_type(tensor)
        fields[tensor.name] = {
            "dtype": stored.tag,
            "shape": stored.header_shape(tensor.shape),
            "data_offsets": (begin, begin + tensor.nbytes),
        }
        begin += tensor.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    padding = -(LENGTH_BYTES + len(text)) % DATA_ALIGNMENT
    if len(text) + padding > HEADER_LIMIT:
        raise CheckpointError(f"the header of {len(tensors)} tensors is too long; use smaller shards")
    return (len(text) + padding).to_bytes(LENGTH_BYTES, "little") + text + b" " * padding


def checked_type(tensor: TensorEntry) -> StoredType:
    """Return the stored type of a tensor that a safetensors file can hold.

    Raises:
        CheckpointError: Its name is reserved or no Unicode, the format has no such dtype, or `nbytes` is not
            what shape and dtype need.
    """
    what = f"tensor {tensor.name!r:.200}"
    if tensor.name == METADATA_KEY or not _is_unicode(tensor.name):
        raise CheckpointError(f"{what} has a name that safetensors files cannot hold; rename it")
    stored = TYPE_BY_NAME.get(tensor.dtype)
    if stored is None:
        raise CheckpointError(
            f"{what} is {tensor.dtype}, which safetensors files cannot hold; "
            f"convert it to one of {', '.join(TYPE_BY_NAME)}"
        )
    try:
        stored.header_shape(tensor.shape)
        expected = stored.nbytes(tensor.shape)
    except ValueError as error:
        raise CheckpointError(f"{what} has the impossible shape {list(tensor.shape)}: {error}") from error
    if tensor.nbytes != expected:
        raise CheckpointError(
            f"{what} of dtype {tensor.dtype} and shape {list(tensor.shape)} has {expected} bytes, "
            f"not {tensor.nbytes}; whoever described it is wrong"
        )
    return stored


def _check_metadata(metadata: object, file: Path) -> None:
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise damaged(file, f"{METADATA_KEY} does not map strings to strings")


def _parse_tensor(name: str, fields: object, data_start: int, file: Path) -> StoredTensor:
    try:
        if not isinstance(fields, dict) or not _is_unicode(name):
            raise ValueError("it is not described by an object under a Unicode name")
        stored = _type_of(fields.get("dtype"))
        shape = stored.torch_shape(_counts(fields.get("shape")))
        offsets = _counts(fields.get("data_offsets"))
        nbytes = stored.nbytes(shape)
        if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
            raise ValueError(f"data_offsets {offsets!s:.100} do not span the {nbytes} bytes of its shape")
    except ValueError as error:
        raise damaged(file, f"tensor {name!r:.200}: {error}") from error
    return StoredTensor(name, stored.name, shape, nbytes, file, data_start + offsets[0])


def _type_of(tag: object) -> StoredType:
    if not isinstance(tag, str):
        raise ValueError("its dtype is no string")
    if tag not in TYPE_BY_TAG:
        raise ValueError(f"dtype {tag!r:.50} is none that torch has: {', '.join(TYPE_BY_TAG)}")
    return TYPE_BY_TAG[tag]


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError("shape and data_offsets must be lists of whole numbers")
    return tuple(value)


def _check_contiguous(tensors: Iterable[StoredTensor], start: int, end: int, file: Path) -> None:
    for tensor in tensors:
        if tensor.offset != start:
            kind = "overlaps the tensor before it" if tensor.offset < start else "leaves a hole before it"
            raise damaged(file, f"tensor {tensor.name!r:.200} {kind}")
        start += tensor.nbytes
    if start != end:
        raise damaged(file, f"its tensors end at byte {start} and the file at {end}")


def _is_unicode(name: str) -> bool:
    # JSON can spell half a surrogate pair, which no UTF-8 text and no protobuf string can hold.
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in name)
