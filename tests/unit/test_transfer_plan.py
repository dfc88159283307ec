"""The planner: every byte once, in batches, merged where neighbours stay neighbours."""

import ctypes
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.errors import ManifestInvalid
from modelexpress.memory import Region
from modelexpress.transfer.ledger import Ledger
from modelexpress.transfer.manifest import Manifest, Scope, contiguous_strides, is_dense
from modelexpress.transfer.pieces import Addresses, Pieces, chunk_numbers, overlapping
from modelexpress.transfer.pieces import cut as cut_addresses
from modelexpress.transfer.plan import Plan
from modelexpress.transfer.plan import make_plan as plan_addresses
from modelexpress.transfer.seal import seal
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Tensors


def spec(name: str, region: int, offset: int, nbytes: int) -> TensorSpec:
    return TensorSpec(name, "uint8", (nbytes,), (1,), region, offset, nbytes)


def manifest_of(tensors: list[TensorSpec], region_bytes: tuple[int, ...], chunk_bytes: int) -> Manifest:
    chunks = sum(-(-tensor.nbytes // chunk_bytes) for tensor in tensors)
    return Manifest(
        Scope.MODULE, chunk_bytes, region_bytes, Tensors.of(tensors), np.arange(1, chunks + 1, dtype=np.uint64)
    )


def cut(manifest: Manifest, addresses: dict[str, int]) -> Pieces:
    return cut_addresses(manifest, Addresses.of(manifest, addresses))


def make_plan(
    manifest: Manifest, addresses: dict[str, int], ledger: Ledger, batch_bytes: int, first_bytes: int | None = None
) -> Plan:
    return plan_addresses(manifest, Addresses.of(manifest, addresses), ledger, batch_bytes, first_bytes)


def execute(plan: Plan, regions: list[bytes], base: int, size: int) -> bytearray:
    """Carry a plan out on plain bytes: addresses count from `base`."""
    memory = bytearray(size)
    for run in itertools.chain.from_iterable(batch.runs for batch in plan.batches):
        start = run.address - base
        memory[start : start + run.nbytes] = regions[run.region][run.offset : run.offset + run.nbytes]
    return memory


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[TensorSpec], list[bytes], dict[str, int], int]:
    """Tensors packed with random gaps into regions, and a random order of destinations."""
    regions, tensors = [], []
    for region in range(draw(st.integers(1, 3))):
        offset = 0
        for number in range(draw(st.integers(0, 12))):
            offset += draw(st.sampled_from([0, 0, 1, 64]))
            size = draw(st.integers(0, 300))
            tensors.append(spec(f"{region}.{number}", region, offset, size))
            offset += size
        regions.append(bytes(np.random.default_rng(region).integers(0, 256, offset + 1, dtype=np.uint8)))
    addresses, position = {}, 1000
    for tensor in draw(st.permutations(tensors)):
        position += draw(st.sampled_from([0, 0, 8]))
        addresses[tensor.name] = position
        position += tensor.nbytes
    return tensors, regions, addresses, position


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(1, 200), st.integers(1, 2000))
def test_a_plan_brings_every_tensor_to_its_place(
    layout: tuple[list[TensorSpec], list[bytes], dict[str, int], int], chunk_bytes: int, batch_bytes: int
) -> None:
    tensors, regions, addresses, end = layout
    manifest = manifest_of(tensors, tuple(map(len, regions)), chunk_bytes)
    plan = make_plan(manifest, addresses, Ledger(), batch_bytes)
    memory = execute(plan, regions, 1000, end)
    for tensor in tensors:
        start = addresses[tensor.name] - 1000
        source = regions[tensor.region][tensor.offset : tensor.offset + tensor.nbytes]
        assert memory[start : start + tensor.nbytes] == source
    assert plan.nbytes == manifest.total_bytes
    assert plan.batches == () or plan.batches[-1].end == len(manifest.digests)
    for batch in plan.batches:
        assert batch.end == max(chunk_numbers(manifest, batch.pieces)) + 1
        assert sum(run.nbytes for run in batch.runs) == batch.nbytes
        assert batch.nbytes <= batch_bytes or len(batch.pieces) == 1


def test_neighbours_on_both_sides_become_one_run() -> None:
    manifest = manifest_of([spec(f"t{i}", 0, 10 * i, 10) for i in range(50)], (500,), 4)
    plan = make_plan(manifest, {f"t{i}": 7000 + 10 * i for i in range(50)}, Ledger(), 1 << 20)
    assert [(run.offset, run.address, run.nbytes) for run in plan.batches[0].runs] == [(0, 7000, 500)]


def test_many_tiny_tensors_are_cut_into_batches() -> None:
    manifest = manifest_of([spec(f"t{i}", 0, 2 * i, 1) for i in range(10_000)], (20_000,), 64)
    plan = make_plan(manifest, {f"t{i}": 5000 + i for i in range(10_000)}, Ledger(), 1 << 20)
    assert [len(batch.runs) for batch in plan.batches] == [4096, 4096, 1808]


def test_first_batches_are_small_and_double() -> None:
    manifest = manifest_of([spec("a", 0, 0, 1000)], (1000,), 10)
    plan = make_plan(manifest, {"a": 4096}, Ledger(), 300, first_bytes=50)
    assert [batch.nbytes for batch in plan.batches] == [50, 100, 200, 300, 300, 50]
    assert [batch.end for batch in plan.batches] == [5, 15, 35, 65, 95, 100]
    tiny = make_plan(manifest, {"a": 4096}, Ledger(), 20, first_bytes=1)
    assert [batch.nbytes for batch in tiny.batches] == [10] * 5 + [20] * 47 + [10]
    large = make_plan(manifest, {"a": 4096}, Ledger(), 300, first_bytes=1000)
    assert [batch.nbytes for batch in large.batches] == [300, 300, 300, 100]


def test_what_another_source_delivered_is_kept_only_where_its_digest_is_the_same() -> None:
    tensors = [spec("a", 0, 0, 100), spec("b", 0, 100, 100)]
    first = manifest_of(tensors, (200,), 50)
    addresses = {"a": 4096, "b": 8192}
    ledger = Ledger()
    ledger.record(first, cut(first, addresses)[:3])
    digests = first.digests.copy()
    digests[1] += np.uint64(1)
    second = Manifest(Scope.MODULE, 50, (200,), Tensors.of(tensors), digests)
    plan = make_plan(second, addresses, ledger, 1 << 20)
    assert plan.kept_bytes == 100
    assert [(run.offset, run.nbytes) for run in plan.batches[0].runs] == [(50, 50), (150, 50)]
    again = make_plan(first, addresses, ledger, 1 << 20)
    assert again.kept_bytes == 100, "a chunk that is being overwritten is no longer held"


@pytest.mark.parametrize(
    "changed",
    [TensorSpec("a", "uint8", (4, 25), (25, 1), 0, 0, 100), TensorSpec("a", "uint8", (4, 25), (1, 4), 0, 0, 100)],
    ids=["as a row", "as columns"],
)
def test_what_was_received_in_another_order_is_not_kept(changed: TensorSpec) -> None:
    original = TensorSpec("a", "uint8", (4, 25), (25, 1), 0, 0, 100)
    first, second = manifest_of([original], (100,), 50), manifest_of([changed], (100,), 50)
    ledger = Ledger()
    ledger.record(first, cut(first, {"a": 4096}))
    assert make_plan(second, {"a": 4096}, ledger, 1 << 20).kept_bytes == (100 if changed == original else 0)


def test_chunks_are_kept_by_name_where_sources_list_them_differently() -> None:
    tensors = [spec("a", 0, 0, 120), spec("b", 0, 200, 70), spec("c", 0, 400, 30)]
    first = manifest_of(tensors, (1000,), 50)
    other = [spec("x", 0, 900, 10), spec("c", 0, 0, 30), spec("b", 0, 30, 90), spec("a", 0, 500, 120)]
    second = manifest_of(other, (1000,), 50)
    second.digests[:] = [9, 6, 4, 5, 1, 2, 99]
    addresses = {"a": 4096, "b": 8192, "c": 9000}
    ledger = Ledger()
    ledger.record(first, cut(first, addresses)[[0, 2, 3, 5]])
    held = ledger.held(second, pieces := cut(second, addresses | {"x": 1}))
    names = [(second.names[piece["tensor"]], int(piece["chunk"])) for piece in pieces[held]]
    assert names == [("c", 0), ("a", 0)], "b has another size, the last chunk of a another digest"


def test_forgotten_tensors_are_not_held() -> None:
    manifest = manifest_of([spec("a", 0, 0, 100), spec("b", 0, 100, 100)], (200,), 50)
    ledger = Ledger()
    ledger.forget_tensors(["a"])
    ledger.record(manifest, pieces := cut(manifest, {"a": 4096, "b": 8192}))
    ledger.forget_tensors(["a", "not there"])
    assert ledger.held(manifest, pieces).tolist() == [False, False, True, True]


def test_chunks_of_another_size_are_not_kept() -> None:
    first, second = (manifest_of([spec("a", 0, 0, 100)], (100,), size) for size in (50, 25))
    ledger = Ledger()
    ledger.record(first, cut(first, {"a": 4096}))
    assert make_plan(second, {"a": 4096}, ledger, 1 << 20).kept_bytes == 0


def test_memory_that_tensors_share_in_part_is_never_kept() -> None:
    manifest = manifest_of([spec("a", 0, 0, 100), spec("b", 0, 100, 100), spec("c", 0, 200, 10)], (210,), 1 << 20)
    addresses = {"a": 4096, "b": 4096 + 50, "c": 9000}
    ledger = Ledger()
    ledger.record(manifest, cut(manifest, addresses))
    assert make_plan(manifest, addresses, ledger, 1 << 20).kept_bytes == 10


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_overlaps_are_found(ranges: list[tuple[int, int]]) -> None:
    tensors = [spec(str(i), 0, 100 * i, size) for i, (_, size) in enumerate(ranges)]
    manifest = manifest_of(tensors, (10_000,), 1 << 20)
    pieces = cut(manifest, {str(i): 4096 + start for i, (start, _) in enumerate(ranges)})
    spans = [(int(p["address"]), int(p["address"]) + int(p["nbytes"])) for p in pieces]
    expected = [any(a < d and c < b for j, (c, d) in enumerate(spans) if j != i) for i, (a, b) in enumerate(spans)]
    assert overlapping(pieces).tolist() == expected


@pytest.mark.parametrize(
    "tensor",
    [
        spec("a", 1, 0, 10),
        spec("a", 0, 95, 10),
        spec("a", 0, -1, 10),
        spec("a", 0, 0, -1),
        TensorSpec("a", "uint8", (2, 5), (1, 1), 0, 0, 10),
        TensorSpec("a", "uint8", (10,), (), 0, 0, 10),
    ],
)
def test_a_tensor_outside_its_region_or_with_gaps_is_refused(tensor: TensorSpec) -> None:
    with pytest.raises(ManifestInvalid, match="tensor 'a'"):
        manifest_of([tensor], (100,), 64)


def test_manifests_that_contradict_themselves_are_refused() -> None:
    one = spec("a", 0, 0, 10)
    with pytest.raises(ManifestInvalid, match="twice"):
        manifest_of([one, one], (100,), 64)
    with pytest.raises(ManifestInvalid, match="digests, not 3"):
        Manifest(Scope.MODULE, 64, (100,), Tensors.of([one]), np.zeros(3, np.uint64))
    with pytest.raises(ManifestInvalid, match="same version"):
        Manifest(Scope.MODULE, 64, (100,), Tensors.of([one]), np.zeros(1, np.uint64), digest_algorithm="md5")
    with pytest.raises(ManifestInvalid, match="not possible"):
        Manifest(Scope.MODULE, 64, (1 << 62,), Tensors.of([one]), np.zeros(1, np.uint64))


def test_a_manifest_of_the_same_tensors_in_other_memory() -> None:
    manifest = manifest_of([spec("a", 0, 0, 100), spec("b", 1, 0, 60)], (100, 60), 50)
    placed = manifest.placed((300,), np.array([0, 0]), np.array([200, 10]))
    assert [(t.name, t.region, t.offset, t.nbytes) for t in placed.tensors] == [("a", 0, 200, 100), ("b", 0, 10, 60)]
    assert placed.same_content(manifest)
    assert placed.region_bytes == (300,)
    for offsets in ([201, 10], [200, -1]):
        with pytest.raises(ManifestInvalid, match="lies outside region 0 of 1"):
            manifest.placed((300,), np.array([0, 0]), np.array(offsets))
    with pytest.raises(ManifestInvalid, match="lies outside region 1 of 1"):
        manifest.placed((300,), np.array([0, 1]), np.array([0, 0]))


def test_content_is_the_same_only_with_the_same_names_layouts_chunks_and_digests() -> None:
    tensors = [spec("a", 0, 0, 100), spec("b", 0, 100, 100)]
    manifest = manifest_of(tensors, (200,), 50)
    assert manifest.same_content(manifest_of(tensors, (200,), 50))
    assert not manifest.same_content(manifest_of(tensors[::-1], (200,), 50))
    assert not manifest.same_content(manifest_of(tensors, (200,), 25))
    assert not manifest.same_content(manifest_of([spec("a", 0, 0, 100), spec("c", 0, 100, 100)], (200,), 50))
    assert not manifest.same_content(manifest_of([replace(tensors[0], dtype="int8"), tensors[1]], (200,), 50))
    other = manifest_of(tensors, (200,), 50)
    other.digests[3] += np.uint64(1)
    assert not manifest.same_content(other)


def test_sealing_digests_every_chunk_of_real_memory() -> None:
    content = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
    region = Region(content.ctypes.data, content.nbytes)
    manifest = seal([spec("a", 0, 100, 300)], [region], scope=Scope.MODULE, chunk_bytes=128)
    assert len(manifest.digests) == 3
    before = manifest.digests.copy()
    ctypes.memset(content.ctypes.data + 100 + 128, 7, 1)
    after = seal([spec("a", 0, 100, 300)], [region], scope=Scope.MODULE, chunk_bytes=128).digests
    assert (before != after).tolist() == [False, True, False]


@given(st.permutations([2, 3, 4]))
def test_permuted_layouts_are_dense(order: list[int]) -> None:
    shape = np.empty(order).transpose(2, 0, 1).shape
    strides = tuple(s // 8 for s in np.empty(order).transpose(2, 0, 1).strides)
    assert is_dense(shape, strides)
    assert is_dense(tuple(order), contiguous_strides(order))
    assert not is_dense(shape, tuple(2 * s for s in strides))
