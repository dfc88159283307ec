"""Loading some rows of tensors only: from peers and from storage, in real processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modelexpress as mx
from modelexpress.errors import CheckpointError, DigestMismatch, LoadError, ManifestMismatch, PartialModel
from modelexpress.peer import PeerClient
from tests.support.loading import new_identity
from tests.support.stacked import CHUNK, EXPERTS, StackedSource, large, load_large, stacked

Range = tuple[int, int]

RANGES: dict[str, Range] = {
    "the beginning": (0, 5),
    "the middle": (3, 11),
    "the end": (9, EXPERTS),
    "the first row": (0, 1),
    "a row": (6, 7),
    "the last row": (EXPERTS - 1, EXPERTS),
    "all": (0, EXPERTS),
}
UPLINK = 16 << 20
"""Bytes a second of sources that are killed, so that none has sent all before it dies."""


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return new_identity()


def settings(transport: str = "auto") -> mx.Settings:
    return mx.Settings.model_validate({"transport": transport, "chunk_bytes": CHUNK, "stall_timeout": 5})


def experts(layers: int, rows: Range) -> dict[str, Range]:
    return {f"layers.{number}.{name}": rows for number in range(layers) for name in ("gate_up", "down", "wide")}


def expected(layers: int, rows: Mapping[str, Range], seed: int = 0) -> dict[str, torch.Tensor]:
    every = stacked(layers, seed)
    return {name: tensor[slice(*rows[name])] if name in rows else tensor for name, tensor in every.items()}


def room(layers: int, rows: Mapping[str, Range], device: str) -> dict[str, torch.Tensor]:
    """Return a model to be filled, which has none of the bytes that it shall get."""
    whole = {name: torch.empty_like(tensor, device=device) for name, tensor in expected(layers, rows).items()}
    if device == "cpu":
        for name, tensor in expected(layers, rows).items():
            whole[name].view(torch.uint8).copy_(~tensor.view(torch.uint8))
    return whole


def same(model: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return model.keys() == other.keys() and all(
        model[name].dtype == tensor.dtype and torch.equal(model[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in other.items()
    )


def travelling(layers: int, rows: Mapping[str, Range]) -> int:
    """Return the bytes of all chunks that hold something that is wanted."""
    total = 0
    for name, tensor in stacked(layers).items():
        start, stop = rows.get(name, (0, len(tensor)))
        first, end = (bound * (tensor.nbytes // len(tensor)) for bound in (start, stop))
        total += min(-(-end // CHUNK) * CHUNK, tensor.nbytes) - first // CHUNK * CHUNK
    return total


@pytest.fixture(scope="module", params=["local", "tcp"])
def source(registry: str, request: pytest.FixtureRequest) -> Iterator[tuple[StackedSource, mx.SourceIdentity, str]]:
    identity = new_identity()
    with StackedSource(registry, identity, transport=request.param, layers=2) as process:
        yield process, identity, request.param


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("rows", RANGES.values(), ids=RANGES)
def test_rows_arrive_bit_for_bit(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str], rows: Range, device: str
) -> None:
    process, identity, transport = source
    wanted = experts(2, rows)
    model = room(2, wanted, device)
    seen: list[tuple[int, int]] = []
    report = mx.load(
        model,
        identity,
        registry=registry,
        rows=wanted,
        settings=settings(transport),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert same(model, expected(2, wanted))
    assert (report.source, report.transport) == (process.worker_id, transport)
    moved = travelling(2, wanted)
    assert report.nbytes == moved
    assert seen[-1] == (moved, moved)
    foreseen = mx.plan(room(2, wanted, "meta"), identity, registry=registry, rows=wanted, settings=settings(transport))
    assert foreseen.choice is not None
    assert foreseen.choice.nbytes == moved


def test_ranks_may_want_different_rows_of_different_tensors(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str]
) -> None:
    _, identity, transport = source
    wanted = {"layers.0.gate_up": (3, 4), "layers.1.down": (10, 16), "embed": (7, 993)}
    model = room(2, wanted, "meta")
    mx.load(model, identity, registry=registry, rows=wanted, settings=settings(transport))
    assert same(model, expected(2, wanted))


def test_rows_of_a_model_in_another_order_within_a_row(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str]
) -> None:
    _, identity, transport = source
    wanted = {"layers.0.gate_up": (3, 8)}
    model = room(2, wanted, "cpu")
    model["layers.0.gate_up"] = torch.zeros(5, 128, 96, dtype=torch.bfloat16).transpose(1, 2)
    mx.load(model, identity, registry=registry, rows=wanted, settings=settings(transport))
    model["layers.0.gate_up"] = model["layers.0.gate_up"].contiguous()
    assert same(model, expected(2, wanted))


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        ((12, 20), (8, 50, 131), r"it has 16 rows, not rows 12:20"),
        ((12, 14), (2, 50, 130), r"rows 12:14 of 'layers.0.down' are float8_e4m3fn\[2, 50, 131\] of 13100 bytes"),
    ],
    ids=["outside", "shape"],
)
def test_rows_that_no_source_and_no_checkpoint_has_are_refused_unchanged(
    registry: str,
    source: tuple[StackedSource, mx.SourceIdentity, str],
    tmp_path: Path,
    rows: Range,
    shape: tuple[int, ...],
    message: str,
) -> None:
    _, identity, transport = source
    save_file(stacked(2), tmp_path / "model.safetensors")
    model = room(2, {}, "cpu")
    model["layers.0.down"] = torch.zeros(shape, dtype=torch.float8_e4m3fn)
    before = {name: tensor.clone() for name, tensor in model.items()}
    with pytest.raises(LoadError) as caught:
        mx.load(
            model,
            identity,
            registry=registry,
            storage=tmp_path,
            rows={"layers.0.down": rows},
            settings=settings(transport),
        )
    assert [type(cause) for cause in caught.value.causes] == [ManifestMismatch, CheckpointError]
    assert not isinstance(caught.value, PartialModel)
    assert caught.match(message)
    assert caught.match(rf"\[16, 50, 131\] in the files, \[{shape[0]}, .*, for rows {rows[0]}:{rows[1]}, in the model")
    assert same(model, before)


def test_without_rows_other_shapes_still_differ(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str]
) -> None:
    _, identity, transport = source
    wanted = experts(2, (0, 5))
    with pytest.raises(ManifestMismatch, match="6 tensors differ"):
        mx.load(room(2, wanted, "cpu"), identity, registry=registry, settings=settings(transport))


@contextmanager
def flipped(source: StackedSource, name: str, byte: int) -> Iterator[None]:
    source.flip(name, byte)
    try:
        yield
    finally:
        source.flip(name, byte)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "byte", [4 * 150_001, 5 * 150_001 + 7, 9 * 150_001 - 1, 4 * 150_001 - 1], ids=["first", "inner", "last", "edge"]
)
def test_a_byte_that_flipped_is_named_and_never_delivered(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str], device: str, byte: int
) -> None:
    process, identity, transport = source
    wanted = experts(2, (4, 9))
    model = room(2, wanted, device)
    with (
        flipped(process, "layers.0.wide", byte),
        pytest.raises(PartialModel if device == "cpu" else DigestMismatch) as caught,
    ):
        mx.load(model, identity, registry=registry, rows=wanted, settings=settings(transport))
    cause = caught.value.causes[0] if isinstance(caught.value, PartialModel) else caught.value
    assert isinstance(cause, DigestMismatch)
    assert (cause.tensor, cause.chunk) == ("layers.0.wide", byte // CHUNK)
    assert device == "cpu" or all(tensor.is_meta for tensor in model.values())


def test_an_edge_that_is_wrong_is_not_put_in_place(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str]
) -> None:
    process, identity, transport = source
    wanted = experts(2, (4, 9))
    model = room(2, wanted, "cpu")
    before = model["layers.0.wide"].clone()
    with flipped(process, "layers.0.wide", 4 * 150_001), pytest.raises(PartialModel):
        mx.load(model, identity, registry=registry, rows=wanted, settings=settings(transport))
    head = -4 * 150_001 % CHUNK
    assert torch.equal(model["layers.0.wide"].flatten()[:head], before.flatten()[:head])


def test_what_flipped_in_rows_that_are_not_wanted_does_not_matter(
    registry: str, source: tuple[StackedSource, mx.SourceIdentity, str]
) -> None:
    process, identity, transport = source
    wanted = experts(2, (4, 9))
    model = room(2, wanted, "cpu")
    with flipped(process, "layers.0.wide", 12 * 150_001):
        mx.load(model, identity, registry=registry, rows=wanted, settings=settings(transport))
    assert same(model, expected(2, wanted))


class KillAt:
    """A progress callback that kills whichever source is being read, once, when so many bytes are verified."""

    def __init__(self, verified: float, sources: Sequence[StackedSource]) -> None:
        self._verified = verified
        self._sources = sources
        self.killed: list[StackedSource] = []

    def __call__(self, done: int, total: int) -> None:
        if self.killed or done < self._verified:
            return
        for source in self._sources:
            with PeerClient(source.endpoint) as client:
                if client.readers():
                    source.kill()
                    self.killed.append(source)


LAYERS = 4
HALF = experts(LAYERS, (3, 11))
MOVED = travelling(LAYERS, HALF)


@contextmanager
def sources(
    registry: str, identity: mx.SourceIdentity, seeds: Sequence[int]
) -> Iterator[tuple[StackedSource, StackedSource]]:
    def start(seed: int) -> StackedSource:
        return StackedSource(registry, identity, transport="tcp", layers=LAYERS, seed=seed, uplink=UPLINK)

    with start(seeds[0]) as first, start(seeds[1]) as second:
        yield first, second


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("fraction", [0.2, 0.9], ids=["among whole chunks", "among edges"])
def test_another_source_goes_on_where_the_first_one_died(
    registry: str, identity: mx.SourceIdentity, device: str, fraction: float
) -> None:
    model = room(LAYERS, HALF, device)
    with sources(registry, identity, (0, 0)) as both:
        killer = KillAt(fraction * MOVED, both)
        report = mx.load(model, identity, registry=registry, rows=HALF, progress=killer, settings=settings("tcp"))
    assert same(model, expected(LAYERS, HALF))
    assert [report.source] == [process.worker_id for process in both if process not in killer.killed]
    assert report.kept_bytes >= fraction * MOVED, "what was verified is not fetched again"
    assert report.nbytes == MOVED


def test_a_second_source_with_other_weights_never_mixes_with_the_first(
    registry: str, identity: mx.SourceIdentity
) -> None:
    model = room(LAYERS, HALF, "cpu")
    with sources(registry, identity, (0, 1)) as both:
        killer = KillAt(0.5 * MOVED, both)
        report = mx.load(model, identity, registry=registry, rows=HALF, progress=killer, settings=settings("tcp"))
    assert same(model, expected(LAYERS, HALF, seed=0 if killer.killed == [both[1]] else 1))
    assert report.kept_bytes == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storage_finishes_when_the_only_source_died(
    registry: str, identity: mx.SourceIdentity, tmp_path: Path, device: str
) -> None:
    save_file(stacked(LAYERS), tmp_path / "model.safetensors")
    model = room(LAYERS, HALF, device)
    with StackedSource(registry, identity, transport="tcp", layers=LAYERS, uplink=UPLINK) as process:
        report = mx.load(
            model,
            identity,
            registry=registry,
            storage=tmp_path,
            rows=HALF,
            progress=KillAt(0.5 * MOVED, [process]),
            settings=settings("tcp"),
        )
    assert report.strategy == "storage"
    assert same(model, expected(LAYERS, HALF))
    assert report.nbytes == sum(tensor.nbytes for tensor in expected(LAYERS, HALF).values())


@pytest.mark.parametrize("rows", RANGES.values(), ids=RANGES)
def test_storage_reads_rows(registry: str, identity: mx.SourceIdentity, tmp_path: Path, rows: Range) -> None:
    save_file(stacked(1), tmp_path / "model.safetensors")
    wanted = experts(1, rows)
    model = room(1, wanted, "cpu")
    mx.load(model, identity, registry=registry, storage=tmp_path, rows=wanted)
    assert same(model, expected(1, wanted))


SLACK = 32 << 20
"""What a load needs beside the weights: the scratch, threads, and connections."""


@pytest.mark.parametrize("transport", ["local", "tcp"])
def test_a_rank_that_wants_an_eighth_needs_an_eighth_of_the_memory(
    registry: str, identity: mx.SourceIdentity, transport: str
) -> None:
    # Rows are no multiple of these chunks, so that both ends stick out.
    with StackedSource(registry, identity, transport=transport, layers=0, chunk=5 << 20):
        moved, grown = load_large(registry, identity, 9, 17)
    assert 64 << 20 < moved <= (64 << 20) + 2 * (5 << 20)
    assert grown < (64 << 20) + SLACK


def test_of_a_checkpoint_only_the_rows_are_read(registry: str, identity: mx.SourceIdentity, tmp_path: Path) -> None:
    save_file(large(), tmp_path / "model.safetensors")
    moved, grown = load_large(registry, identity, 9, 17, str(tmp_path))
    assert moved == 64 << 20
    assert grown < 2 * (64 << 20) + SLACK, "the pages of the file that were read count, too"
