"""The header parser and builder, with the safetensors library as oracle."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.errors import CheckpointError
from modelexpress.weights.dtypes import TYPE_BY_NAME, TYPE_BY_TAG
from modelexpress.weights.safetensors_header import DATA_ALIGNMENT, build_header, parse_header
from modelexpress.weights.stored_tensor import TensorEntry

FILE = Path("model.safetensors")
TORCH_NAMES = sorted(
    {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
)


@st.composite
def entries(draw: st.DrawFn) -> TensorEntry:
    stored = TYPE_BY_NAME[draw(st.sampled_from(sorted(TYPE_BY_NAME)))]
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=int(stored.packed > 1), max_size=4)))
    return TensorEntry(draw(st.text(max_size=8)), stored.name, shape, stored.nbytes(shape))


def entry_lists() -> st.SearchStrategy[list[TensorEntry]]:
    return st.lists(entries(), max_size=6, unique_by=lambda entry: entry.name)


def file_of(header: Any, data_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def tensor(dtype: str, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def seen_by_library(content: bytes) -> dict[str, Any]:
    return dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]


@settings(deadline=None)
@given(entry_lists())
def test_what_is_built_is_parsed_again(given_entries: list[TensorEntry]) -> None:
    header = build_header(given_entries)
    content = header + bytes(sum(entry.nbytes for entry in given_entries))
    parsed = parse_header(content, FILE)
    assert len(header) % DATA_ALIGNMENT == 0
    assert {(item.name, item.dtype, item.shape, item.nbytes) for item in parsed} == {
        (entry.name, entry.dtype, entry.shape, entry.nbytes) for entry in given_entries
    }


@settings(deadline=None)
@given(entry_lists())
def test_what_is_built_is_read_by_safetensors(given_entries: list[TensorEntry]) -> None:
    content = build_header(given_entries) + bytes(sum(entry.nbytes for entry in given_entries))
    read = seen_by_library(content)
    assert {name: (item["dtype"], tuple(item["shape"])) for name, item in read.items()} == {
        entry.name: (
            TYPE_BY_NAME[entry.dtype].tag,
            TYPE_BY_NAME[entry.dtype].header_shape(entry.shape),
        )
        for entry in given_entries
    }


@settings(deadline=None, max_examples=300)
@given(entry_lists(), st.data())
def test_a_damaged_file_is_refused_or_still_valid(given_entries: list[TensorEntry], data: st.DataObject) -> None:
    content = bytearray(build_header(given_entries) + bytes(sum(entry.nbytes for entry in given_entries)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    assert_refused_or_sound(bytes(content))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(noise: bytes, with_length: bool) -> None:
    assert_refused_or_sound(file_of(noise, 0) if with_length else noise)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.sampled_from(["U8", "F4", "F64", "F6_E2M3"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a", "b"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=500)
@given(st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), json_values, max_size=3))
def test_headers_of_other_shapes_are_refused(header: dict[str, object]) -> None:
    assert_refused_or_sound(file_of(header, 8))


def assert_refused_or_sound(content: bytes) -> None:
    try:
        parsed = parse_header(content, FILE)
    except CheckpointError:
        return
    assert all(0 <= item.offset <= item.offset + item.nbytes <= len(content) for item in parsed)
    # Whatever this parser takes, the library must take too, and see in it the same tensors.
    assert seen_by_library(content).keys() == {item.name for item in parsed}


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_every_dtype_of_torch_is_stored_as_safetensors_does(name: str) -> None:
    dtype: torch.dtype = getattr(torch, name)
    if name not in TYPE_BY_NAME:
        assert dtype not in safetensors.torch._SIZE
        with pytest.raises(CheckpointError, match=f"'w' is {name}, which safetensors files cannot hold"):
            build_header([TensorEntry("w", name, (2,), 2 * dtype.itemsize)])
        return
    values = torch.zeros(6 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3)
    content = safetensors.torch.save({"w": values})
    (parsed,) = parse_header(content, FILE)
    assert (parsed.dtype, parsed.shape, parsed.nbytes) == (name, (2, 3), values.nbytes)
    assert content[parsed.offset :] == bytes(values.nbytes)


def test_every_tag_of_the_library_is_known_but_the_two_that_torch_lacks() -> None:
    with pytest.raises(safetensors.SafetensorError) as refusal:
        seen_by_library(file_of({"w": tensor("NONE", [1], 0, 1)}, 1))
    known = {word for word in str(refusal.value).replace("`", " ").replace(",", " ").split() if word.isupper()}
    assert known - {"NONE", "JSON"} == TYPE_BY_TAG.keys() | {"F6_E2M3", "F6_E3M2"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the header should end at byte 8 and the file at 0"),
        (b"\1\0\0", "the header should end at byte 9 and the file at 3"),
        ((2**63).to_bytes(8, "little") + b"{}", "the header should end"),
        (file_of(b"[" * 100_000, 0), "its JSON cannot be read"),
        (file_of(b"{}", 1), "its tensors end at byte 10 and the file at 11"),
        (file_of(b"[]", 0), "its JSON is no object"),
        (file_of(b"\xff\xfe{}", 0), "its JSON cannot be read"),
        (file_of({"__metadata__": {"format": 1}}, 0), "does not map strings to strings"),
        (file_of({"w": []}, 0), "'w': it is not described by an object"),
        (file_of(rb'{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0), "Unicode name"),
        (file_of({"w": tensor("F6_E2M3", [4], 0, 3)}, 3), "dtype 'F6_E2M3' is none that torch has"),
        (file_of({"w": tensor("U8", [1.0], 0, 1)}, 1), "must be lists of whole numbers"),
        (file_of({"w": tensor("U8", [True], 0, 1)}, 1), "must be lists of whole numbers"),
        (file_of({"w": tensor("U8", [-1], 0, 1)}, 1), "must be lists of whole numbers"),
        (file_of({"w": tensor("U8", [2**62, 4, 0], 0, 0)}, 0), "the size overflows"),
        (file_of({"w": tensor("F32", [2], 0, 4)}, 4), "do not span the 8 bytes of its shape"),
        (file_of({"w": tensor("U8", [1], 0)}, 1), "do not span the 1 bytes"),
        (file_of({"w": tensor("F4", [3], 0, 1)}, 1), "must be a multiple of 2"),
        (file_of({"w": tensor("F4", [], 0, 1)}, 1), "must be a multiple of 2"),
        (file_of({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, 3), "'b' overlaps"),
        (file_of({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, 3), "'b' leaves a hole"),
        (file_of(b'{"w":{"shape":[],"shape":[]}}', 0), "an object repeats a key"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse_header(content, FILE)
    assert reason in str(refusal.value)
    assert str(FILE) in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (TensorEntry("__metadata__", "int8", (1,), 1), "a name that safetensors files cannot hold"),
        (TensorEntry("\ud800", "int8", (1,), 1), "a name that safetensors files cannot hold"),
        (TensorEntry("w", "int8", (-1,), 1), "impossible shape"),
        (TensorEntry("w", "float4_e2m1fn_x2", (), 1), "impossible shape"),
        (TensorEntry("w", "int16", (3,), 5), "has 6 bytes, not 5"),
    ],
)
def test_what_cannot_be_stored_is_refused(entry: TensorEntry, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        build_header([entry])
