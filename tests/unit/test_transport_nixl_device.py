"""How `nixl` deals with the memory of GPUs, as far as that can be found out without one."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from modelexpress.errors import DeviceError, PeerLost, TransportUnavailable
from modelexpress.memory import HostArena, Region
from modelexpress.memory.cuda_driver import Allocation, driver
from modelexpress.transport import NixlTransport, Run
from modelexpress.transport.nixl_agent import UCX_SETTINGS, Agent
from modelexpress.transport.nixl_device import Ground, allocate, made_current, settle
from modelexpress.transport.nixl_library import load, missing
from modelexpress.transport.nixl_memory import DeviceLanding, Registrations, Span
from modelexpress.transport.nixl_native import NativeAgent, Segment
from tests.support.nixl_doubles import ALLOCATION, CudaDouble, DeviceNixl, install
from tests.support.transport_source import TOKEN

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def has_driver() -> bool:
    try:
        return driver().device_count() > 0
    except DeviceError:
        return False


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    return install(monkeypatch)


@pytest.fixture
def agent(cuda: CudaDouble) -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.native.end()


@pytest.fixture
def memory() -> Iterator[HostArena]:
    with HostArena(8 * ALLOCATION) as arena:
        arena.region.view()[:] = np.random.default_rng(1).bytes(arena.region.nbytes)
        yield arena


@pytest.mark.skipif(has_driver(), reason="this machine has a GPU")
def test_without_a_driver_a_device_cannot_be_used() -> None:
    with made_current(None):
        pass
    for use in (lambda: settle(0), lambda: allocate(0, 1)):
        with pytest.raises(TransportUnavailable, match="GPU 0 cannot be used"):
            use()


def test_memory_that_is_no_gpus_is_not_registered_as_that() -> None:
    native, arena = NativeAgent(load(), "no-gpu", "UCX", UCX_SETTINGS), HostArena(4096)
    with pytest.raises(TransportUnavailable, match="memory of a GPU"):
        native.register((arena.region.address, 4096, 0), segment=Segment.DEVICE)
    native.end()


def test_numbers_tell_registrations_and_devices(agent: Agent, memory: HostArena) -> None:
    registrations = Registrations(agent.native)
    span = Span(memory.region.address, 4096, device=0)
    other, host = Span(span.end, 4096, device=0), Span(other_end := span.end + 4096, 4096)
    assert other_end == host.address
    first = registrations.hold_all([span, other, host, span])
    assert first[0] == first[3]
    assert len({number for _, _, number in first}) == 3
    assert [number & 0xFFFF for _, _, number in first[:2]] == [0, 0]
    registrations.let_go(span, other, host)
    assert registrations.hold(span) == first[0], "it was held twice"
    registrations.let_go(span, span)
    assert registrations.hold(span) != first[0]
    registrations.let_go(span)


def test_a_device_that_is_not_there_leaves_nothing_registered(agent: Agent, memory: HostArena) -> None:
    registrations = Registrations(agent.native)
    good, bad = Span(memory.region.address, 4096, device=0), Span(memory.region.address + 4096, 4096, device=1)
    with pytest.raises(TransportUnavailable, match="GPU 1"):
        registrations.hold_all([good, bad])
    with pytest.raises(KeyError):
        registrations.let_go(good)
    registrations.hold(good)
    registrations.let_go(good)


def test_the_driver_is_asked_once_for_each_allocation(cuda: CudaDouble) -> None:
    ground = Ground(0)
    runs = [Run(0, 0, ALLOCATION * n + 5, 10) for n in (9, 3, 4)]
    for _ in range(3):
        ground.explore(runs)
    assert cuda.asked == 3
    assert ground.under(ALLOCATION * 4 + 14) == Region(ALLOCATION * 4, ALLOCATION, device=0)
    with pytest.raises(TransportUnavailable, match="GPU 7"):
        Ground(7).explore(runs)


def test_neighbours_that_are_one_region_replace_their_parts(cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ALLOCATION
    monkeypatch.setattr(cuda, "allocation", lambda address: Allocation(address // size * size, size, 0, False))
    ground = Ground(0)
    for first, count in ((4, 1), (8, 1), (6, 1), (3, 3), (5, 2), (3, 6)):
        ground.explore([Run(0, 0, size * first, size * count)])
        assert ground.under(size * first).address <= size * first
        assert ground.under(size * first).nbytes >= size * count
    assert ground.under(size * 8) == Region(size * 3, size * 6, device=0)


def test_destinations_end_where_allocations_do(agent: Agent, memory: HostArena) -> None:
    landing = DeviceLanding(Registrations(agent.native), 0)
    start = -(-memory.region.address // ALLOCATION) * ALLOCATION
    pieces = landing.fit([Run(3, 7, start + 100, 2 * ALLOCATION), Run(1, 0, start, 50)])
    assert pieces == [
        Run(3, 7, start + 100, ALLOCATION - 100),
        Run(3, 7 + ALLOCATION - 100, start + ALLOCATION, ALLOCATION),
        Run(3, 7 + 2 * ALLOCATION - 100, start + 2 * ALLOCATION, 100),
        Run(1, 0, start, 50),
    ]
    blocks = landing.blocks([Span(piece.address, piece.nbytes) for piece in pieces])
    assert [block[:2] for block in blocks] == [(piece.address, piece.nbytes) for piece in pieces]
    assert len({number for _, _, number in blocks}) == 3, "one registration for each allocation"
    landing.release()


def test_device_memory_travels(cuda: CudaDouble, agent: Agent, memory: HostArena) -> None:
    target = bytearray(memory.region.nbytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(target))
    host = HostArena(5)
    host.region.view()[:] = b"bytes"
    with DeviceNixl(agent) as transport:
        export = NixlTransport.export(transport, [memory.region, Region(host.region.address, 5), Region(0, 0, None, 0)])
        mixed = NixlTransport.export(transport, [Region(*_place(memory), device=0), host.region])
        for offered in (export, mixed):
            offered.grant(TOKEN)
            target[:] = bytes(len(target))
            with transport.open(offered.descriptor, TOKEN) as reader:
                whole = reader.read([Run(0, 0, address, memory.region.nbytes)])
                part = reader.read([Run(0, 3, address, 2), Run(1, 1, address + 2, 4), Run(0, 6, address + 6, 1)])
                whole.wait(8)
                part.wait(8)
            expected = bytearray(memory.region.view())
            expected[:7] = bytes(expected[3:5]) + b"ytes" + expected[6:7]
            assert target == expected
    assert not cuda.current
    assert not cuda.settled, "nothing went wrong"


def test_what_a_failed_read_left_on_the_device_is_waited_for(
    cuda: CudaDouble, agent: Agent, memory: HostArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: int) -> bool:
        raise PeerLost("the source has gone")

    target = HostArena(4096)
    with DeviceNixl(agent) as transport:
        export = transport.export([memory.region])
        export.grant(TOKEN)
        with transport.open(export.descriptor, TOKEN) as reader:
            monkeypatch.setattr(agent.native, "landed", fails)
            with pytest.raises(PeerLost):
                reader.read([Run(0, 0, target.region.address, 4096)]).wait(8)
        assert cuda.settled == 1


def test_a_destination_that_is_no_device_memory_fails_its_transfer(
    cuda: CudaDouble, agent: Agent, memory: HostArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(address: int) -> object:
        raise DeviceError("address is not in the memory of a CUDA device")

    with DeviceNixl(agent) as transport:
        export = transport.export([memory.region])
        export.grant(TOKEN)
        with transport.open(export.descriptor, TOKEN) as reader:
            monkeypatch.setattr(cuda, "allocation", unknown)
            with pytest.raises(DeviceError):
                reader.read([Run(0, 0, 4096, 4096)]).wait(8)


def test_a_way_that_is_not_there_is_named(agent: Agent, memory: HostArena, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise TransportUnavailable("NIXL could not read from the source: no protocol")

    monkeypatch.setattr(agent, "probe", unreachable)
    with DeviceNixl(agent) as transport:
        exports = transport.export([memory.region]), NixlTransport.export(transport, [memory.region])
        for export, way in zip(exports, ("memory of a GPU to GPU 0; NVLink", "host memory to GPU 0"), strict=True):
            export.grant(TOKEN)
            with pytest.raises(TransportUnavailable, match=way):
                transport.open(export.descriptor, TOKEN)
        with pytest.raises(TransportUnavailable, match="memory of a GPU to host memory"):
            NixlTransport.open(transport, exports[0].descriptor, TOKEN)


def _place(arena: HostArena) -> tuple[int, int]:
    return arena.region.address, arena.region.nbytes
