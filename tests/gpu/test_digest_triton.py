"""Digests computed on a GPU, against the host's over the same bytes."""

# mypy: untyped-calls-exclude=torch

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import torch

from modelexpress.transfer.digest import digest_many
from tests.support.digest_inputs import VECTORS, Bytes, Column, column, random_bytes, vector_bytes

if TYPE_CHECKING:
    from modelexpress.transfer.digest_triton import DeviceDigests

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LINE = 1024
MIB = 1 << 20
SMALL = 20_000


@pytest.fixture(scope="module")
def device_digests() -> "DeviceDigests":
    from modelexpress.transfer.digest_triton import DeviceDigests

    return DeviceDigests(0)


class Memory:
    """The same random bytes on the host and on the device."""

    def __init__(self, host: Bytes) -> None:
        self.host = host
        self.device = torch.from_numpy(host).to("cuda:0")

    def equal(self, device_digests: "DeviceDigests", starts: Column, lengths: Column) -> None:
        """Assert that host and device agree on every range."""
        expected = digest_many(starts + column(self.host.ctypes.data), lengths)
        found = device_digests.enqueue(starts + column(self.device.data_ptr()), lengths).result()
        wrong = np.flatnonzero(found != expected)
        assert not wrong.size, f"range {wrong[0]}: {lengths[wrong[0]]} bytes at {starts[wrong[0]]}"
        assert found.dtype == np.uint64


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    yield Memory(random_bytes(72 * MIB))
    torch.cuda.empty_cache()


def digest_of(device_digests: "DeviceDigests", tensor: torch.Tensor) -> int:
    torch.cuda.synchronize()
    return int(device_digests.enqueue(column(tensor.data_ptr()), column(tensor.nbytes)).result()[0])


@pytest.mark.parametrize("vector", VECTORS["digests"], ids=lambda vector: f"{vector['pattern']}-{vector['bytes']}")
def test_definition_never_drifts(device_digests: "DeviceDigests", vector: dict[str, str | int]) -> None:
    data = vector_bytes(str(vector["pattern"]), int(vector["bytes"]))
    padded = torch.from_numpy(np.frombuffer(data + b"x", np.uint8).copy()).to("cuda:0")
    assert digest_of(device_digests, padded[: len(data)]) == int(str(vector["digest"]), 16)


def test_every_length_at_every_alignment(device_digests: "DeviceDigests", memory: Memory) -> None:
    lengths = [0, 1, 7, 8, 9, 1023, 1024, 1025, 4096, 16 * LINE - 1, 16 * LINE, 256 * LINE - 1, 256 * LINE + 1]
    pairs = [(start, length) for length in lengths for start in range(18)]
    memory.equal(device_digests, column(*(start for start, _ in pairs)), column(*(length for _, length in pairs)))


@pytest.mark.parametrize("start", [0, 1, 4, 8, 16, 31])
def test_large_ranges(device_digests: "DeviceDigests", memory: Memory, start: int) -> None:
    lengths = column(3 * MIB + 13, 64 * MIB, 64 * MIB + 1, 70 * MIB - 3, memory.host.size - start)
    memory.equal(device_digests, np.full_like(lengths, start), lengths)


def test_ranges_at_the_end_of_memory(device_digests: "DeviceDigests", memory: Memory) -> None:
    lengths = column(1, 5, 8, 15, 1000, 1024, 5000, MIB + 1)
    memory.equal(device_digests, column(memory.host.size) - lengths, lengths)


def test_many_small_ranges_side_by_side(device_digests: "DeviceDigests", memory: Memory) -> None:
    lengths = np.random.default_rng(1).integers(0, 3500, SMALL).astype(np.uint64)
    memory.equal(device_digests, np.cumsum(lengths) - lengths, lengths)


def test_overlapping_ranges(device_digests: "DeviceDigests", memory: Memory) -> None:
    generator = np.random.default_rng(2)
    starts = generator.integers(0, 8 * MIB, 200).astype(np.uint64)
    memory.equal(device_digests, starts, generator.integers(0, 4 * MIB, 200).astype(np.uint64))


def test_no_ranges(device_digests: "DeviceDigests") -> None:
    assert device_digests.enqueue(column(), column()).result().tolist() == []


def test_the_result_is_the_same_every_time(device_digests: "DeviceDigests", memory: Memory) -> None:
    starts = np.arange(0, 64 * MIB, MIB, dtype=np.uint64) + column(memory.device.data_ptr())
    lengths = np.full_like(starts, 8 * MIB)
    pending = [device_digests.enqueue(starts, lengths) for _ in range(50)]
    first = pending[0].result()
    assert len(set(first.tolist())) == len(first)
    assert all(np.array_equal(each.result(), first) for each in pending)


@pytest.mark.parametrize("place", [0, 1, 511, 1023, 1024, 65_535, 2 * MIB - 1, 3 * MIB + 12])
def test_one_flipped_bit_is_found(device_digests: "DeviceDigests", memory: Memory, place: int) -> None:
    chunk = memory.device[: 3 * MIB + 13].clone()
    before = digest_of(device_digests, chunk)
    chunk[place] ^= 1
    assert digest_of(device_digests, chunk) != before
    chunk[place] ^= 1
    assert digest_of(device_digests, chunk) == before


def test_neighbouring_bytes_do_not_matter(device_digests: "DeviceDigests", memory: Memory) -> None:
    room = memory.device[:10_000].clone()
    before = digest_of(device_digests, room[1001:5002])
    room[:1001] ^= 0xFF
    room[5002:] ^= 0xFF
    assert digest_of(device_digests, room[1001:5002]) == before


@pytest.mark.parametrize("default", [True, False], ids=["default stream", "other stream"])
def test_work_of_other_streams_is_waited_for(device_digests: "DeviceDigests", memory: Memory, default: bool) -> None:
    stream = torch.cuda.default_stream(0) if default else torch.cuda.Stream(0)
    target, matrix = torch.zeros_like(memory.device), torch.ones(8192, 8192, device="cuda:0")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(5):
            matrix = matrix @ matrix  # keeps the stream busy for longer than a launch takes
        target.copy_(memory.device)
        filled = torch.cuda.Event()
        filled.record()
    assert not filled.query()
    pending = device_digests.enqueue(column(target.data_ptr()), column(target.nbytes), after=[stream.cuda_stream])
    expected = digest_many(column(memory.host.ctypes.data), column(memory.host.size))
    assert pending.result().tolist() == expected.tolist()
    assert pending.done()


@pytest.mark.parametrize(
    ("addresses", "lengths", "error"),
    [
        (column(1, 2), column(1), ValueError),
        (column(0), column(1), ValueError),
        (np.array([1]), column(1), TypeError),
    ],
)
def test_wrong_arguments_are_refused(
    device_digests: "DeviceDigests", addresses: Column, lengths: npt.NDArray[np.uint64], error: type[Exception]
) -> None:
    with pytest.raises(error):
        device_digests.enqueue(addresses, lengths)


def test_a_device_that_is_not_there() -> None:
    from modelexpress.errors import DeviceError
    from modelexpress.transfer.digest_triton import DeviceDigests

    with pytest.raises(DeviceError, match="CUDA device 99"):
        DeviceDigests(99)
