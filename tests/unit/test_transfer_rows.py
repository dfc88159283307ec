"""Rows of tensors: what fits, what travels of them, and where the chunks that stick out go."""

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.errors import DeviceError, ManifestMismatch
from modelexpress.memory import Region
from modelexpress.transfer.compare import Wanted, compare
from modelexpress.transfer.edges import SLOTS, Edges, slot_bytes
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest, Scope
from modelexpress.transfer.pieces import Addresses, Pieces, Scratch, Windows, cut
from modelexpress.transfer.plan import Batch, Plan, make_plan
from modelexpress.transfer.pull import WINDOW, Feed, pull
from modelexpress.transfer.rows import Rows
from modelexpress.transfer.seal import seal
from modelexpress.transport import Reader, Run, Transfer
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Layout, Tensors
from tests.support.driver_double import DriverDouble

GUARD = 0xEE
GAP = 5
"""Bytes between destinations, which nothing may touch."""


@dataclass(frozen=True)
class Case:
    """Tensors of bytes side by side in one region, and what is wanted of some of them."""

    sizes: tuple[int, ...]
    windows: dict[int, tuple[int, int]]
    chunk_bytes: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 300), min_size=1, max_size=6)))
    windows = {}
    for position in draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)):
        first = draw(st.integers(0, sizes[position] - 1))
        windows[position] = (first, draw(st.integers(first + 1, sizes[position])))
    return Case(sizes, windows, draw(st.integers(1, 120)))


class Memory:
    """A source's region, destinations with gaps between them, and scratch, all of them real memory."""

    def __init__(self, case: Case, device: int | None = None) -> None:
        offsets = np.cumsum([0, *case.sizes])
        specs = [
            TensorSpec(str(number), "uint8", (size,), (1,), 0, int(offsets[number]), size)
            for number, size in enumerate(case.sizes)
        ]
        chunks = sum(-(-size // case.chunk_bytes) for size in case.sizes)
        digests = np.arange(1, chunks + 1, dtype=np.uint64)
        self.manifest = Manifest(Scope.MODULE, case.chunk_bytes, (int(offsets[-1]),), Tensors.of(specs), digests)
        self.region = np.random.default_rng(0).integers(0, 200, offsets[-1], dtype=np.uint8)
        every = [case.windows.get(number, (0, size)) for number, size in enumerate(case.sizes)]
        first, end = (np.array(column, np.int64) for column in zip(*every, strict=True))
        self.starts = np.cumsum([0, *(end - first + GAP)[:-1]])
        self.room = np.full(int((end - first + GAP).sum()), GUARD, np.uint8)
        positions = np.arange(len(case.sizes))
        self.slot = slot_bytes(self.manifest, positions, first, end)
        self.scratch = np.full(SLOTS * self.slot + GAP, GUARD, np.uint8)
        windows = Windows(first, end, Scratch(self.scratch.ctypes.data, self.slot, device))
        # Backwards: a target names its tensors in any order.
        self.destinations = Addresses(
            positions[::-1],
            (self.room.ctypes.data + self.starts).astype(np.uint64)[::-1],
            Windows(windows.first[::-1], windows.end[::-1], windows.scratch),
        )
        self.expected = self.room.copy()
        for number, (begin, stop) in enumerate(every):
            at, source = self.starts[number], offsets[number]
            self.expected[at : at + stop - begin] = self.region[source + begin : source + stop]

    def execute(self, plan: Plan) -> None:
        """Carry a plan out, putting the wanted parts of edges in place as late as is allowed."""
        waiting: deque[Batch] = deque()
        for batch in plan.batches:
            if len(waiting) == SLOTS:
                put(waiting.popleft())
            for run in batch.runs:
                ctypes.memmove(run.address, self.region.ctypes.data + run.offset, run.nbytes)
            if batch.edges is not None:
                waiting.append(batch)
        while waiting:
            put(waiting.popleft())


def put(batch: Batch) -> None:
    assert batch.edges is not None
    batch.edges.put(batch.pieces)


def pieces_of(plan: Plan) -> Pieces:
    return np.concatenate([batch.pieces for batch in plan.batches])


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(1, 500))
def test_what_is_wanted_arrives_and_nothing_else_is_touched(case: Case, batch_bytes: int) -> None:
    memory = Memory(case)
    plan = make_plan(memory.manifest, memory.destinations, Ledger(), batch_bytes)
    memory.execute(plan)
    assert np.array_equal(memory.room, memory.expected)
    assert (memory.scratch[SLOTS * memory.slot :] == GUARD).all()
    travelled = pieces_of(plan)
    assert len(np.unique(travelled[["tensor", "chunk"]])) == len(travelled)
    for tensor, chunk in travelled[["tensor", "chunk"]].tolist():
        first, end = case.windows.get(tensor, (0, case.sizes[tensor]))
        assert chunk * case.chunk_bytes < end
        assert (chunk + 1) * case.chunk_bytes > first
    edges = [batch for batch in plan.batches if batch.edges is not None]
    assert plan.batches[len(plan.batches) - len(edges) :] == tuple(edges)
    assert sum(len(batch.pieces) for batch in edges) <= 2 * len(case.windows)


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 500), st.randoms(use_true_random=False))
def test_verified_chunks_are_kept_and_the_rest_completes_them(case: Case, batch_bytes: int, random: Random) -> None:
    memory, ledger = Memory(case), Ledger()
    first = make_plan(memory.manifest, memory.destinations, ledger, batch_bytes)
    delivered = first.batches[: random.randint(0, len(first.batches))]
    memory.execute(Plan(delivered))
    for batch in delivered:
        ledger.record(memory.manifest, batch.pieces)
    memory.scratch[:] = GUARD
    rest = make_plan(memory.manifest, memory.destinations, ledger, batch_bytes)
    assert rest.kept_bytes == sum(batch.nbytes for batch in delivered)
    assert rest.nbytes + rest.kept_bytes == first.nbytes
    memory.execute(rest)
    assert np.array_equal(memory.room, memory.expected)


def test_whole_tensors_are_planned_as_without_rows() -> None:
    case = Case((250, 64), {0: (0, 250)}, 100)
    memory = Memory(case)
    assert memory.slot == 0
    whole = Addresses(memory.destinations.positions, memory.destinations.addresses)
    assert np.array_equal(cut(memory.manifest, whole), cut(memory.manifest, memory.destinations))
    plan = make_plan(memory.manifest, memory.destinations, Ledger(), 1 << 20)
    assert [batch.edges for batch in plan.batches] == [None]


def test_scratch_does_not_grow_with_the_model() -> None:
    chunk, tensors = 64 << 20, 1000
    specs = [TensorSpec(str(i), "uint8", (1 << 30,), (1,), 0, i << 30, 1 << 30) for i in range(tensors)]
    digests = np.zeros(tensors * 16, np.uint64)
    manifest = Manifest(Scope.MODULE, chunk, (tensors << 30,), Tensors.of(specs), digests)
    first, end = np.full(tensors, 100), np.full(tensors, 900 << 20)
    assert slot_bytes(manifest, np.arange(tensors), first, end) == chunk
    few = slot_bytes(manifest, np.arange(1), np.array([0]), np.array([1 << 30]))
    assert few == 0, "nothing sticks out"


def test_there_is_a_slot_for_each_batch_on_its_way() -> None:
    assert SLOTS >= WINDOW


def test_of_a_chunk_on_both_sides_of_the_window_the_middle_is_wanted() -> None:
    memory = Memory(Case((100,), {0: (40, 60)}, 100))
    (batch,) = make_plan(memory.manifest, memory.destinations, Ledger(), 1 << 20).batches
    assert isinstance(batch.edges, Edges)
    (part,) = batch.edges.parts(batch.pieces)
    assert (part["offset"], part["nbytes"], part["address"]) == (40, 20, memory.room.ctypes.data)


def test_on_a_device_what_is_wanted_is_there_when_it_is_put(monkeypatch: pytest.MonkeyPatch) -> None:
    double = use_double(monkeypatch, DriverDouble())
    memory = Memory(Case((300, 200), {0: (40, 260), 1: (7, 150)}, 100), device=0)
    memory.execute(make_plan(memory.manifest, memory.destinations, Ledger(), 1 << 20))
    assert np.array_equal(memory.room, memory.expected)
    assert double.streams == []


def test_where_a_device_fails_nothing_is_under_way_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    double = use_double(monkeypatch, DriverDouble(copies=1))
    memory = Memory(Case((300,), {0: (40, 260)}, 100), device=0)
    plan = make_plan(memory.manifest, memory.destinations, Ledger(), 1 << 20)
    with pytest.raises(DeviceError, match="illegal memory access"):
        memory.execute(plan)
    assert double.streams == []


def use_double(monkeypatch: pytest.MonkeyPatch, double: DriverDouble) -> DriverDouble:
    monkeypatch.setattr("modelexpress.memory.cuda_driver.driver", lambda: double)
    monkeypatch.setattr("modelexpress.memory.cuda_copy.Stream", double.stream)
    return double


class AtOnce(Reader):
    """Has every byte land when it is asked for, which is as early as a transport may."""

    def __init__(self, region: int) -> None:
        self._region = region

    def read(self, runs: Sequence[Run]) -> Transfer:
        for run in runs:
            ctypes.memmove(run.address, self._region + run.offset, run.nbytes)
        return Landed(sum(run.nbytes for run in runs))

    def close(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class Landed(Transfer):
    """Bytes that are there."""

    nbytes: int

    @property
    def progress(self) -> int:
        return self.nbytes

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Nothing is waited for."""


@pytest.mark.parametrize("verify", [True, False])
def test_no_slot_is_used_again_before_what_was_in_it_is_in_place(verify: bool) -> None:
    case = Case((300_000,) * 100, dict.fromkeys(range(100), (50_000, 250_000)), 100_000)
    memory = Memory(case)
    region = Region(memory.region.ctypes.data, memory.region.nbytes)
    manifest = seal(memory.manifest.tensors, [region], scope=Scope.MODULE, chunk_bytes=case.chunk_bytes)
    plan = make_plan(manifest, memory.destinations, Ledger(), case.chunk_bytes)
    assert sum(batch.edges is not None for batch in plan.batches) == 200
    pull(plan, AtOnce(region.address), manifest, Ledger(), feed=Feed("source"), timeout=20.0, verify=verify)
    assert np.array_equal(memory.room, memory.expected)


def layout(*shape: int, strides: tuple[int, ...] | None = None, dtype: str = "uint8") -> Layout:
    steps = strides or tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return Layout(dtype, shape, steps, int(np.prod(shape)))


def test_rows_of_a_tensor_are_bytes_side_by_side() -> None:
    assert Rows(2, 5).of(layout(8, 3, 4)) == Layout("uint8", (3, 3, 4), (12, 4, 1), 36)
    assert Rows(2, 5).window(layout(8, 3, 4)) == (24, 60)
    assert not Rows(7, 8).misfit(layout(8, 3, 4))
    assert not Rows(0, 2).misfit(layout(8, 3, 4, strides=(12, 1, 3))), "the order within a row does not matter"
    assert not Rows(0, 1).misfit(layout(1, 4, strides=(77, 1)))


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (layout(), "it has no rows"),
        (layout(8, 3), "it has 8 rows, not rows 6:9"),
        (layout(9, 3, strides=(1, 9)), r"its rows do not lie one after the other \(strides \[1, 9\]\)"),
    ],
)
def test_rows_that_a_source_has_not_are_told(whole: Layout, reason: str) -> None:
    specs = [TensorSpec("w", whole.dtype, whole.shape, whole.strides, 0, 0, whole.nbytes)]
    manifest = Manifest(Scope.MODULE, 64, (whole.nbytes,), Tensors.of(specs), np.zeros(1, np.uint64))
    with pytest.raises(ManifestMismatch, match=f"'w' is uint8.* at the source: {reason}"):
        compare(manifest, want(layout(3, 3), Rows(6, 9)))


def want(here: Layout, rows: Rows) -> Wanted:
    return Wanted(("w",), (here,), np.zeros(1, np.int64), np.zeros(1, np.int64), {0: rows})


@pytest.mark.parametrize("here", [layout(3, 3, dtype="int8"), layout(3, 4), layout(2, 3), layout(9)])
def test_rows_of_another_kind_differ(here: Layout) -> None:
    specs = [TensorSpec("w", "uint8", (9, 3), (3, 1), 0, 0, 27)]
    manifest = Manifest(Scope.MODULE, 64, (27,), Tensors.of(specs), np.zeros(1, np.uint64))
    compare(manifest, want(layout(3, 3), Rows(6, 9)))
    with pytest.raises(ManifestMismatch, match=r"rows 6:9 of 'w' are uint8\[3, 3\] of 9 bytes at the source, "):
        compare(manifest, want(here, Rows(6, 9)))
