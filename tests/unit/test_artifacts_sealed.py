"""Sealed manifests: one JSON text for each, and nothing that breaks a rule can be made or read."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.artifacts import sealed
from modelexpress.artifacts.sealed import SealedChunk, SealedFile, SealedManifest, is_sealable
from modelexpress.errors import ArtifactInvalid
from modelexpress.identity import SourceType

TRITON = SourceType.TRITON_CACHE
NOTHING = "00000000"
CHARACTERS = st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="/\\")
NAMES = st.text(CHARACTERS, min_size=1, max_size=12).filter(lambda name: is_sealable(f"/{name}"))
SIZES = st.integers(0, 50)


def manifest_of(sizes: dict[str, int], chunk_size: int = 10) -> SealedManifest:
    """Return a manifest of files by path and size; their checksums are made up."""
    files: list[SealedFile] = []
    chunks: list[SealedChunk] = []
    for index, (path, size) in enumerate(sorted(sizes.items())):
        files.append(SealedFile(index, path, size, "0000beef" if size else NOTHING))
        for offset in range(0, size, chunk_size):
            length = min(chunk_size, size - offset)
            chunks.append(SealedChunk(len(chunks), index, offset, length, "0000beef"))
    return SealedManifest(TRITON, chunk_size, tuple(files), tuple(chunks))


@st.composite
def manifests(draw: st.DrawFn) -> SealedManifest:
    # Files of one folder each: no file is another's folder.
    names = draw(st.lists(NAMES, unique=True, max_size=8))
    sizes = {f"/{name}/{draw(NAMES)}": draw(SIZES) for name in names}
    return manifest_of(sizes, draw(st.integers(1, 60)))


def changed(value: Any, data: st.DataObject) -> Any:
    """Return JSON with one part of it, chosen at random, made something else."""
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(sorted(value)))
        return value | {key: changed(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed(value[place], data), *value[place + 1 :]]
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    return data.draw(
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
    )


def test_the_canonical_form_is_that_of_the_wire() -> None:
    manifest = SealedManifest(
        TRITON,
        4,
        (SealedFile(0, "/a/é", 5, "0123abcd"), SealedFile(1, "/b", 0, NOTHING)),
        (SealedChunk(0, 0, 0, 4, "00000001"), SealedChunk(1, 0, 4, 1, "00000002")),
    )
    expected = (
        '{"manifest_version":1,"mx_source_type":4,"chunk_size":4,'
        '"files":[{"file_index":0,"path":"/a/é","size":5,"checksum":"0123abcd"},'
        '{"file_index":1,"path":"/b","size":0,"checksum":"00000000"}],'
        '"chunks":[{"chunk_index":0,"file_index":0,"file_offset":0,"length":4,"checksum":"00000001"},'
        '{"chunk_index":1,"file_index":0,"file_offset":4,"length":1,"checksum":"00000002"}]}'
    ).encode()
    assert manifest.canonical_json() == expected
    assert manifest.artifact_id == hashlib.sha256(expected).hexdigest()
    assert manifest.total_bytes == 5


@given(manifest=manifests())
def test_what_is_written_is_read(manifest: SealedManifest) -> None:
    again = SealedManifest.from_json(manifest.canonical_json())
    assert again == manifest
    assert again.artifact_id == manifest.artifact_id
    assert isinstance(again.source_type, SourceType)


@given(data=st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactInvalid):
        SealedManifest.from_json(data)


@given(manifest=manifests(), data=st.data())
def test_a_manifest_that_was_changed_is_refused_or_another_one(manifest: SealedManifest, data: st.DataObject) -> None:
    value = changed(json.loads(manifest.canonical_json()), data)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    try:
        again = SealedManifest.from_json(text)
    except ArtifactInvalid:
        return
    assert again.canonical_json() == text
    assert (again.artifact_id == manifest.artifact_id) == (text == manifest.canonical_json())


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text + b" ",
        lambda text: text.replace(b":1,", b": 1,", 1),
        lambda text: text.replace(b'{"manifest_version":1,', b'{"manifest_version":1,"manifest_version":1,', 1),
        lambda text: text.replace(b'{"manifest_version":1,', b'{"extra":0,"manifest_version":1,', 1),
        lambda text: text.replace(b'"/a"', b'"\\u002fa"', 1),
        lambda text: text.replace(b'"size":5', b'"size":5.0', 1),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"[" * 1_000_000,
        lambda text: text.replace(b'"size":5', b'"size":' + b"9" * 10_000, 1),
    ],
)
def test_any_other_way_to_write_it_is_refused(rewrite: Any) -> None:
    text = manifest_of({"/a": 5}).canonical_json()
    assert rewrite(text) != text
    with pytest.raises(ArtifactInvalid):
        SealedManifest.from_json(rewrite(text))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "/",
        "//a",
        "/a/",
        "/a//b",
        "/./a",
        "/a/.",
        "/..",
        "/../a",
        "/a/../b",
        "/a/..",
        "a/b",
        "C:\\a",
        "/a\\..\\b",
        "/a\0b",
        "/a\nb",
        "/\x1b[2J",
        "/\ud800",
        "/a\u202eb",
        "/" + "n" * 256,
        "/" + "é" * 128,
        "/a" * 1_600,
        "~/a/..",
        "\\a",
    ],
)
def test_paths_that_lead_astray_are_refused(path: str) -> None:
    assert not is_sealable(path)
    with pytest.raises(ArtifactInvalid, match="path"):
        SealedManifest(TRITON, 10, (SealedFile(0, path, 0, NOTHING),), ())


@given(path=st.text(max_size=60))
def test_a_path_that_is_accepted_stays_below_its_root(path: str) -> None:
    if is_sealable(path):
        assert path.startswith("/")
        assert not {"", ".", ".."}.intersection(path[1:].split("/"))
        assert "\0" not in path


GOOD = manifest_of({"/a": 25, "/b/c": 0, "/b/d": 7})


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("version", {"version": 2}),
        ("version", {"version": True}),
        ("source type", {"source_type": 99}),
        ("chunks of", {"chunk_size": 0}),
        ("chunks of", {"chunk_size": sealed.MAX_CHUNK_BYTES + 1}),
        ("index", {"files": (GOOD.files[1], GOOD.files[0], GOOD.files[2])}),
        ("not sorted", {"files": (*GOOD.files[:2], SealedFile(2, "/a/z", 7, "0000beef"))}),
        ("not sorted", {"files": (*GOOD.files[:2], SealedFile(2, "/b/c", 7, "0000beef"))}),
        ("no chunk", {"chunks": GOOD.chunks[:-1]}),
        ("belongs to no file", {"chunks": (*GOOD.chunks, SealedChunk(4, 2, 0, 1, "0000beef"))}),
        ("not the next", {"chunks": (GOOD.chunks[1], GOOD.chunks[0], *GOOD.chunks[2:])}),
        ("checksum", {"files": (SealedFile(0, "/a", 25, "0000BEEF"), *GOOD.files[1:])}),
        ("checksum", {"files": (SealedFile(0, "/a", 25, "beef"), *GOOD.files[1:])}),
        ("different checksums", {"files": (*GOOD.files[:2], SealedFile(2, "/b/d", 7, "0000beee"))}),
        ("is empty", {"files": (GOOD.files[0], SealedFile(1, "/b/c", 0, "0000beef"), GOOD.files[2])}),
        ("bytes", {"files": (SealedFile(0, "/a", -25, "0000beef"), *GOOD.files[1:])}),
        ("bytes", {"files": (SealedFile(0, "/a", 1 << 41, "0000beef"), *GOOD.files[1:])}),
    ],
)
def test_a_manifest_that_contradicts_itself_cannot_be_made(problem: str, change: dict[str, Any]) -> None:
    if "chunks" in change and problem == "not the next":
        renumbered = (dataclasses.replace(chunk, index=index) for index, chunk in enumerate(change["chunks"]))
        change = {"chunks": tuple(renumbered)}
    with pytest.raises(ArtifactInvalid, match=problem):
        dataclasses.replace(GOOD, **change)


def test_a_file_is_no_folder() -> None:
    for sizes in ({"/a": 1, "/a/b": 1}, {"/a": 0, "/a!": 3, "/a/b/c": 1}):
        with pytest.raises(ArtifactInvalid, match="folder of another"):
            manifest_of(sizes)


@pytest.mark.parametrize(("what", "limit"), [("files", "MAX_FILES"), ("chunks", "MAX_CHUNKS")])
def test_there_are_limits(what: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, limit, 2)
    with pytest.raises(ArtifactInvalid, match=what):
        manifest_of({"/a": 25, "/b": 1, "/c": 1})


def test_ten_thousand_files_are_no_matter() -> None:
    manifest = manifest_of({f"/{number % 100:02}/{number:05}": number for number in range(10_000)}, 1 << 20)
    assert SealedManifest.from_json(manifest.canonical_json()) == manifest
