"""The chunk digest: C and numpy against fixed vectors, a definition in plain integers, and each other."""

import doctest
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.transfer import digest_numpy
from modelexpress.transfer.digest import (
    DIGEST_ALGORITHM,
    copy_digest_many,
    digest,
    digest_many,
    implementation,
)
from tests.support.digest_inputs import VECTORS, Bytes, Column, column, random_bytes, vector_bytes

LINE = 1024
COPY_PIECE = 128 * LINE
BOUNDARIES = [0, 1, 7, 8, 9, 1023, 1024, 1025, 2047, 2048, 2049]
LARGE = [COPY_PIECE - 1, COPY_PIECE, COPY_PIECE + 1, 2 * COPY_PIECE + LINE, 3 * 1024**2 + 13]


def address(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


def plain_key(index: int) -> int:
    z = (0x243F6A8885A308D3 + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def plain_line_hash(line: bytes) -> int:
    words = [int.from_bytes(line[i : i + 8], "little") for i in range(0, LINE, 8)]
    factors = [(word + plain_key(i)) % 2**64 for i, word in enumerate(words)]
    return sum(a * b for a, b in zip(factors[0::2], factors[1::2], strict=True)) % 2**128


def plain_digest(data: bytes) -> int:
    """docs/digest.md, formula by formula, in Python integers."""
    padded = data + bytes(-len(data) % LINE)
    total = len(data) * plain_key(128)
    for line in range(len(padded) // LINE):
        line_hash = plain_line_hash(padded[line * LINE : (line + 1) * LINE])
        for j in range(4):
            total += (line_hash >> (32 * j)) % 2**32 * plain_key(129 + 4 * line + j)
    return total % (2**61 - 1)


def compiled() -> ModuleType:
    if implementation().name != "C":
        pytest.skip(implementation().reason)
    from modelexpress.transfer import _nh

    return _nh


@pytest.fixture(params=["C", "numpy"])
def functions(request: pytest.FixtureRequest) -> ModuleType:
    """Each implementation behind modelexpress.transfer.digest."""
    return compiled() if request.param == "C" else digest_numpy


def many(functions: ModuleType, chunks: list[Bytes]) -> list[int]:
    digests = np.empty(len(chunks), dtype=np.uint64)
    functions.digest_many(column(*map(address, chunks)), column(*(chunk.size for chunk in chunks)), digests)
    return [int(each) for each in digests]


def test_vectors_are_of_this_algorithm() -> None:
    assert VECTORS["algorithm"] == DIGEST_ALGORITHM == "nh128-p61/1"


@pytest.mark.parametrize("vector", VECTORS["digests"], ids=lambda vector: f"{vector['pattern']}-{vector['bytes']}")
def test_definition_never_drifts(functions: ModuleType, vector: dict[str, Any]) -> None:
    data = vector_bytes(vector["pattern"], vector["bytes"])
    assert functions.digest(data) == int(vector["digest"], 16)


def test_keys_never_drift() -> None:
    for index, key in VECTORS["keys"].items():
        assert digest_numpy.keys(int(index), 1).tolist() == [int(key, 16)]


@pytest.mark.parametrize("vector", VECTORS["line_hashes"], ids=lambda vector: str(vector["pattern"]))
def test_line_hashes_never_drift(vector: dict[str, str]) -> None:
    words = np.frombuffer(vector_bytes(vector["pattern"], LINE), dtype="<u8").astype(np.uint64)
    parts = digest_numpy.line_hashes(words.reshape(1, -1))[0].tolist()
    assert sum(part << (32 * j) for j, part in enumerate(parts)) == int(vector["hash"], 16)


@given(st.binary(max_size=4 * LINE))
def test_numpy_follows_the_plain_definition(data: bytes) -> None:
    assert digest_numpy.digest(data) == plain_digest(data)


@given(
    st.one_of(st.sampled_from(BOUNDARIES + LARGE), st.integers(0, 300 * LINE)),
    st.integers(0, 2**32),
    st.integers(0, 63),
)
def test_c_equals_numpy_at_every_length_and_alignment(length: int, seed: int, offset: int) -> None:
    chunk = random_bytes(length + offset, seed)[offset:]
    expected = digest_numpy.digest(chunk.data)
    assert compiled().digest(chunk.data) == expected
    assert many(compiled(), [chunk]) == [expected]


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80])
def test_extreme_words_carry_alike(fill: int) -> None:
    data = bytes([fill]) * (5 * LINE + 3)
    assert compiled().digest(data) == digest_numpy.digest(data) == plain_digest(data)


def test_no_bytes_have_digest_zero(functions: ModuleType) -> None:
    assert functions.digest(b"") == 0
    assert many(functions, [random_bytes(0)]) == [0]


def test_zero_length_range_may_have_no_address() -> None:
    assert digest_many(column(0), column(0)).tolist() == [0]
    assert copy_digest_many(column(0), column(0), column(0)).tolist() == [0]


def test_no_ranges() -> None:
    assert digest_many(column(), column()).tolist() == []


def test_digest_is_below_the_prime(functions: ModuleType) -> None:
    digests = [functions.digest(random_bytes(100, seed).data) for seed in range(200)]
    assert max(digests) < digest_numpy.PRIME
    assert max(digests) > digest_numpy.PRIME // 2


def test_digest_many_equals_digest(functions: ModuleType) -> None:
    chunks = [random_bytes(length, seed=length) for length in BOUNDARIES + LARGE]
    assert many(functions, chunks) == [functions.digest(chunk.data) for chunk in chunks]


@given(st.integers(1, 5 * LINE), st.data())
def test_any_changed_byte_changes_the_digest(length: int, choice: st.DataObject) -> None:
    chunk = random_bytes(length, seed=length)
    before = digest(chunk.data)
    chunk[choice.draw(st.integers(0, length - 1))] ^= choice.draw(st.integers(1, 255))
    assert digest(chunk.data) != before


def test_every_single_bit_of_two_lines_counts() -> None:
    chunk = random_bytes(2 * LINE)
    digests = {digest(chunk.data)}
    for bit in range(8 * chunk.size):
        chunk[bit // 8] ^= 1 << bit % 8
        digests.add(digest(chunk.data))
        chunk[bit // 8] ^= 1 << bit % 8
    assert len(digests) == 8 * chunk.size + 1


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16, LINE, 8 * LINE], ids=lambda unit: f"{unit}-bytes")
def test_any_two_swapped_units_change_the_digest(unit: int) -> None:
    units = random_bytes(16 * unit, seed=unit).reshape(16, unit)
    before = digest(units.data)
    for first in range(16):
        for second in range(first):
            swapped = units.copy()
            swapped[[first, second]] = units[[second, first]]
            if not np.array_equal(swapped, units):
                assert digest(swapped.data) != before


@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize("fill", [0x00, 0x01])
def test_appended_bytes_change_the_digest(length: int, fill: int) -> None:
    chunk = bytes(random_bytes(length))
    longer = [chunk + bytes([fill]) * count for count in range(2 * LINE)]
    assert len({digest(each) for each in longer}) == len(longer)


def test_every_truncation_changes_the_digest() -> None:
    chunk = bytes(random_bytes(3 * LINE))
    assert len({digest(chunk[:length]) for length in range(len(chunk) + 1)}) == len(chunk) + 1


@pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (0, 3), (5, 9)])
def test_copy_writes_exactly_the_ranges_and_digests_them(functions: ModuleType, offsets: tuple[int, int]) -> None:
    lengths = column(*BOUNDARIES, *LARGE)
    starts = np.cumsum(lengths + np.uint64(1), dtype=np.uint64) - lengths
    room = int(starts[-1] + lengths[-1]) + 16
    source, destination = random_bytes(room), np.zeros(room, dtype=np.uint8)
    sources = starts + np.uint64(address(source) + offsets[0])
    destinations = starts + np.uint64(address(destination) + offsets[1])
    digests = np.empty_like(lengths)
    functions.copy_digest_many(destinations, sources, lengths, digests)

    expected = np.zeros(room, dtype=np.uint8)
    for start, length, found in zip(starts.tolist(), lengths.tolist(), digests.tolist(), strict=True):
        chunk = source[start + offsets[0] :][:length]
        expected[start + offsets[1] :][:length] = chunk
        assert found == digest_numpy.digest(chunk.data)
    assert np.array_equal(destination, expected)


def test_columns_may_be_fields_of_a_structured_array() -> None:
    chunk = random_bytes(5000)
    pieces = np.zeros(2, dtype=[("address", "u8"), ("tensor", "u4"), ("nbytes", "u8")])
    pieces["address"], pieces["nbytes"] = address(chunk), (4000, 5000)
    expected = [digest(chunk[:4000].data), digest(chunk.data)]
    assert digest_many(pieces["address"], pieces["nbytes"]).tolist() == expected


def progress_during(call: Callable[[Column, Column], Column]) -> bool:
    """Whether this thread ran bytecode while `call` ran in another.

    The first and the last range are the same eight bytes, which this thread keeps changing: their digests
    differ only if it could do so between the beginning and the end of one call.
    """
    cell, bulk = np.zeros(1, dtype=np.uint64), random_bytes(8 * 1024**2)
    addresses = column(address(cell), *[address(bulk)] * 40, address(cell))
    lengths = column(8, *[bulk.size] * 40, 8)
    digests: list[Column] = []
    worker = threading.Thread(target=lambda: digests.append(call(addresses, lengths)), name="digests")
    worker.start()
    while worker.is_alive():
        cell[0] += 1
    return bool(digests[0][0] != digests[0][-1])


def copy_and_digest(addresses: Column, lengths: Column) -> Column:
    scratch = np.empty(int(lengths.max()), dtype=np.uint8)
    return copy_digest_many(np.full_like(addresses, address(scratch)), addresses, lengths)


@pytest.mark.parametrize("call", [digest_many, copy_and_digest])
def test_other_threads_run_meanwhile(call: Callable[[Column, Column], Column]) -> None:
    compiled()
    assert any(progress_during(call) for _ in range(20))


def test_digest_takes_any_contiguous_buffer() -> None:
    data = bytes(random_bytes(96))
    floats = np.frombuffer(data, dtype=np.float32).reshape(4, 6)
    assert digest(floats.data) == digest(bytearray(data)) == digest(memoryview(data)) == digest(data)


def test_digest_refuses_what_is_no_contiguous_buffer() -> None:
    with pytest.raises(BufferError, match="contiguous"):
        digest(memoryview(b"0123456789")[::2])
    with pytest.raises(TypeError):
        digest("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("addresses", "lengths", "error", "message"),
    [
        ([1], column(1), TypeError, "list"),
        (np.array([1], dtype=np.int64), column(1), TypeError, "int64"),
        (column(1, 2), column(1), ValueError, "same length"),
        (column(1, 2).reshape(1, 2), column(1, 2), ValueError, "columns"),
        (column(1), np.array(1, dtype=np.uint64), ValueError, "columns"),
        (column(5, 0), column(0, 1), ValueError, "range 1 starts at address 0"),
        (column(2**64 - 1), column(2), ValueError, "range 0 passes the end"),
    ],
)
def test_digest_many_refuses_wrong_arguments(
    addresses: Any, lengths: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        digest_many(addresses, lengths)


@pytest.mark.parametrize("distance", [-99, -1, 0, 1, 99])
def test_copy_refuses_overlap(distance: int) -> None:
    room = random_bytes(300)
    before = room.copy()
    middle = address(room) + 100
    with pytest.raises(ValueError, match="range 0 overlaps"):
        copy_digest_many(column(middle + distance), column(middle), column(100))
    assert np.array_equal(room, before)


@pytest.mark.parametrize("distance", [-100, 100])
def test_copy_takes_neighbours(distance: int) -> None:
    room = random_bytes(300)
    middle = address(room) + 100
    copy_digest_many(column(middle + distance), column(middle), column(100))
    assert np.array_equal(room[100 + distance : 200 + distance], room[100:200])


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (column(1), column(0)),
        (column(1), column(0), np.zeros(2, dtype=np.uint64)),
        (column(1), column(0), np.zeros(1, dtype=np.int64)),
        (column(1), column(0), np.zeros(1, dtype=np.float64)),
        (column(1), column(0), bytearray(8)),
        (column(1), column(0), np.frombuffer(bytes(8), dtype=np.uint64)),
        (column(1, 2, 3)[::2], column(0, 0), column(0, 0)),
        (np.zeros((1, 1), dtype=np.uint64), column(0), column(0)),
        (None, column(0), column(0)),
    ],
)
def test_extension_refuses_arrays_that_it_could_overrun(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        compiled().digest_many(*arguments)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_without_the_extension_numpy_takes_over_and_says_why() -> None:
    output = run_python(
        "import sys; sys.modules['modelexpress.transfer._nh'] = None\n"
        "from modelexpress.transfer.digest import digest, implementation\n"
        "print(digest(b'weights'), implementation().name, implementation().reason)"
    )
    number, name, reason = output.split(" ", 2)
    assert int(number) == plain_digest(b"weights")
    assert name == "numpy"
    assert "C compiler" in reason


def test_extension_of_another_definition_is_not_used() -> None:
    output = run_python(
        "import sys, types; from modelexpress import transfer\n"
        "stale = types.ModuleType('_nh'); stale.ALGORITHM = 'nh128-p61/0'\n"
        "sys.modules['modelexpress.transfer._nh'] = transfer._nh = stale\n"
        "from modelexpress.transfer.digest import implementation\n"
        "print(implementation().name, implementation().reason)"
    )
    assert output.startswith("numpy the compiled extension computes nh128-p61/0")


def test_examples_of_the_docstrings_hold() -> None:
    found = doctest.testmod(sys.modules[digest.__module__])
    assert found.attempted > 0
    assert found.failed == 0


def test_importing_needs_no_torch() -> None:
    assert run_python("import sys, modelexpress.transfer.digest; print('torch' in sys.modules)") == "False"
