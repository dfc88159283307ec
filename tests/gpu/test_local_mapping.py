"""`local` with device memory: regions of every kind are mapped while others are read, and given back afterwards."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from modelexpress.errors import AccessDenied, DeviceError, PeerLost, RegionWithdrawn, TransportUnavailable
from modelexpress.memory import cuda_ipc
from modelexpress.memory.cuda_copy import allocate_device, free_device
from modelexpress.memory.cuda_driver import driver
from modelexpress.transport import LocalTransport, Reader, Run
from modelexpress.transport.device_mapping import DeviceMapping
from modelexpress.transport.device_reader import DeviceReader
from modelexpress.transport.unmapping import settled
from tests.support.device_export import MIB, PART, DeviceExport, Kind, copy_from_device
from tests.support.read_target import Target
from tests.support.transport_source import TOKEN, content


def devices() -> int:
    try:
        return driver().device_count()
    except DeviceError:
        return 0


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices() == 0, reason="no CUDA device")]

WAIT = 30.0
OPENING = "modelexpress.memory.cuda_share.open_shared"
DEVICE = 1 if devices() > 1 else 0
MIXED = [
    Kind("ipc", 5 * MIB + 3),
    Kind("vmm", 3 * PART),
    Kind("host", 9 * MIB + 1),
    Kind("ipc", 40 * MIB),
    Kind("vmm", PART),
    *[Kind("ipc", 3 * MIB) for _ in range(20)],
]
PLAIN = [Kind("ipc", 4 * MIB) for _ in range(8)]


class Room:
    """Memory of the target's device for whole regions, side by side."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.places = list(itertools.accumulate(sizes, initial=0))
        with driver().on(DEVICE):
            self.address = allocate_device(self.places[-1])

    def run(self, number: int) -> Run:
        return Run(number, 0, self.address + self.places[number], self.sizes[number])

    def content(self, number: int) -> bytes:
        with driver().on(DEVICE):
            return copy_from_device(self.address + self.places[number], self.sizes[number])

    def close(self) -> None:
        with driver().on(DEVICE):
            free_device(self.address)


@pytest.fixture
def transport() -> Iterator[LocalTransport]:
    with LocalTransport() as transport:
        yield transport
    assert settled(WAIT)
    assert not cuda_ipc._mappings, "every mapping was given back"


@pytest.fixture
def mixed() -> Iterator[DeviceExport]:
    with DeviceExport(MIXED) as source:
        yield source


@pytest.fixture
def plain() -> Iterator[DeviceExport]:
    with DeviceExport(PLAIN) as source:
        yield source


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room([kind.nbytes for kind in PLAIN])
    yield room
    room.close()


class Gate:
    """Lets IPC handles open only as far as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, opened: int) -> None:
        self._left = threading.Semaphore(opened)
        self._original = cuda_ipc.open_shared
        monkeypatch.setattr(OPENING, self._open)

    def let(self, count: int) -> None:
        self._left.release(count)

    def _open(self, handle: bytes, device: int) -> int:
        assert self._left.acquire(timeout=WAIT)
        return self._original(handle, device)


def all_of(reader: Reader, room: Room) -> None:
    reader.read([room.run(number) for number in range(len(room.sizes))]).wait(WAIT)


def again_and_again(reader: Reader, room: Room) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        all_of(reader, room)


def test_regions_of_every_kind_arrive(mixed: DeviceExport, transport: LocalTransport) -> None:
    room = Room([kind.nbytes for kind in MIXED])
    with transport.open(mixed.descriptor, TOKEN, DEVICE) as reader:
        assert isinstance(reader, DeviceReader)
        all_of(reader, room)
        assert reader.mapping.seconds is not None
        limit = reader.limit()
    assert [room.content(n) == content(n, kind.nbytes) for n, kind in enumerate(MIXED)] == [True] * len(MIXED)
    assert limit is not None
    assert limit.bytes_per_second > 1e6
    room.close()


def test_regions_of_every_kind_arrive_in_host_memory(mixed: DeviceExport, transport: LocalTransport) -> None:
    target = Target(sum(kind.nbytes for kind in MIXED))
    with transport.open(mixed.descriptor, TOKEN) as reader:
        ends = list(itertools.accumulate(kind.nbytes for kind in MIXED))
        reader.read([target.run(n, 0, k.nbytes, at=ends[n] - k.nbytes) for n, k in enumerate(MIXED)]).wait(WAIT)
    assert target.bytes == b"".join(content(n, kind.nbytes) for n, kind in enumerate(MIXED))


def test_pieces_of_any_size_and_place_arrive(plain: DeviceExport, transport: LocalTransport, room: Room) -> None:
    runs = [Run(n % 8, 977 * n, room.address + 1000 * n, 1 + n % 999) for n in range(3000)]
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        reader.read(runs).wait(WAIT)
    with driver().on(DEVICE):
        found = copy_from_device(room.address, 3000 * 1000)
    sources = [content(n, PLAIN[n].nbytes) for n in range(8)]
    for n in range(3000):
        expected = sources[n % 8][977 * n : 977 * n + 1 + n % 999]
        assert found[1000 * n : 1000 * n + len(expected)] == expected, n


def test_two_readers_share_what_is_mapped(plain: DeviceExport, transport: LocalTransport, room: Room) -> None:
    with (
        transport.open(plain.descriptor, TOKEN, DEVICE) as first,
        transport.open(plain.descriptor, TOKEN, DEVICE) as second,
    ):
        all_of(first, room)
        first.close()
        assert settled(WAIT)
        all_of(second, room)
    assert all(room.content(n) == content(n, PLAIN[n].nbytes) for n in range(8))


def test_what_is_mapped_is_read_while_the_rest_is_not(
    plain: DeviceExport, transport: LocalTransport, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, opened=2)
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        reader.read([room.run(0)]).wait(WAIT)
        later = reader.read([room.run(7)])
        assert not later.done()
        gate.let(6)
        later.wait(WAIT)
    assert room.content(7) == content(7, PLAIN[7].nbytes)


def test_a_first_region_out_of_reach_is_another_transports_turn(
    plain: DeviceExport, transport: LocalTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: bytes, device: int) -> int:
        raise DeviceError("cuIpcOpenMemHandle_v2: refused (CUDA error 217)")

    monkeypatch.setattr(OPENING, refuse)
    with pytest.raises(TransportUnavailable, match=f"device {DEVICE} cannot reach the source's device: .*217"):
        transport.open(plain.descriptor, TOKEN, DEVICE)


def test_a_region_said_to_be_larger_than_it_is_is_refused(plain: DeviceExport, transport: LocalTransport) -> None:
    size = PLAIN[0].nbytes
    larger = plain.descriptor.replace(str(size).encode(), str(2 * size).encode())
    with pytest.raises(TransportUnavailable, match=f"has {size} bytes, and should have {2 * size}"):
        transport.open(larger, TOKEN, DEVICE)


def test_a_later_region_out_of_reach_is_another_transports_turn(
    plain: DeviceExport, transport: LocalTransport, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = cuda_ipc.open_shared, itertools.count()

    def refuse_later(handle: bytes, device: int) -> int:
        if next(calls) == 5:
            raise DeviceError("cuIpcOpenMemHandle_v2: refused (CUDA error 2)")
        return original(handle, device)

    monkeypatch.setattr(OPENING, refuse_later)
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        with pytest.raises(TransportUnavailable, match=r"cannot map the source's memory: .*refused"):
            all_of(reader, room)
        with pytest.raises(TransportUnavailable, match="refused"):
            reader.read([room.run(0)]).wait(WAIT)


def test_a_reader_closed_while_it_maps_leaves_nothing_behind(
    plain: DeviceExport, transport: LocalTransport, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, opened=3)
    reader = transport.open(plain.descriptor, TOKEN, DEVICE)
    transfer = reader.read([room.run(n) for n in range(8)])
    reader.close()
    with pytest.raises(PeerLost):
        transfer.wait(WAIT)
    gate.let(8)
    reader.close()
    assert settled(WAIT)


def test_a_lease_ends_while_its_reader_unmaps_and_the_export_does_not(
    plain: DeviceExport, transport: LocalTransport, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmapped, original = threading.Event(), DeviceMapping.close

    def close_late(self: DeviceMapping) -> None:
        assert unmapped.wait(WAIT)
        original(self)

    monkeypatch.setattr(DeviceMapping, "close", close_late)
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        all_of(reader, room)
    plain.ask("revoke")
    closing = threading.Thread(target=plain.ask, args=("close",))
    closing.start()
    closing.join(0.3)
    assert closing.is_alive(), "the memory is still mapped"
    unmapped.set()
    closing.join(WAIT)
    assert not closing.is_alive()


def test_a_source_that_withdraws_ends_what_is_read(plain: DeviceExport, transport: LocalTransport, room: Room) -> None:
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        all_of(reader, room)
        closing = threading.Thread(target=plain.ask, args=("close",))
        closing.start()
        with pytest.raises((RegionWithdrawn, PeerLost)):
            again_and_again(reader, room)
    closing.join(WAIT)
    with pytest.raises(RegionWithdrawn):
        transport.open(plain.descriptor, TOKEN, DEVICE)


def test_a_revoked_lease_ends_what_is_read(plain: DeviceExport, transport: LocalTransport, room: Room) -> None:
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        revoking = threading.Thread(target=plain.ask, args=("revoke",))
        revoking.start()
        with pytest.raises(AccessDenied):
            again_and_again(reader, room)
    revoking.join(WAIT)


def test_a_killed_source_is_noticed(plain: DeviceExport, transport: LocalTransport, room: Room) -> None:
    with transport.open(plain.descriptor, TOKEN, DEVICE) as reader:
        all_of(reader, room)
        plain.kill()
        with pytest.raises(PeerLost):
            again_and_again(reader, room)
