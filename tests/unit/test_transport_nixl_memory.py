"""What NIXL registers and whom it stays connected to, with real agents of one process."""

import ctypes
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory import HostArena, Region
from modelexpress.transport.nixl_agent import UCX_SETTINGS
from modelexpress.transport.nixl_library import load, missing
from modelexpress.transport.nixl_memory import Landing, Registrations, Span, united
from modelexpress.transport.nixl_native import Block, NativeAgent
from modelexpress.transport.nixl_peers import IDLE_PEERS, RENEW_AFTER, Peers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PAGE = 4096


def agent(name: str) -> NativeAgent:
    return NativeAgent(load(), name, "UCX", UCX_SETTINGS)


@pytest.fixture
def native() -> Iterator[NativeAgent]:
    native = agent("target")
    yield native
    native.end()


def span_of(region: Region) -> Span:
    return Span(region.address, region.nbytes)


def read(native: NativeAgent, peer: str, source: Block, target: Block) -> None:
    """Read memory of a peer."""
    handle = native.post(peer, [target], [source])
    wait_until(lambda: native.landed(handle))
    native.release(handle)


def copy(native: NativeAgent, source: Block, target: Block) -> None:
    """Read memory of the agent's own."""
    read(native, native.name, source, target)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30))
def test_united_ranges_hold_the_same_bytes_once(rows: list[tuple[int, int]]) -> None:
    joined = list(united(Span(*row) for row in rows))
    held = [address for span in joined for address in range(span.address, span.end)]
    assert held == sorted({address for start, nbytes in rows for address in range(start, start + nbytes)})
    assert all(before.end < after.address for before, after in itertools.pairwise(joined))


def test_a_range_is_registered_once_for_all_its_users(native: NativeAgent) -> None:
    memory, arena = Registrations(native), HostArena(PAGE)
    span = span_of(arena.region)
    first = memory.hold(span)
    assert memory.hold(span) == first
    memory.let_go(span)
    copy(native, first, first)
    memory.let_go(span)
    with pytest.raises(TransportUnavailable):
        copy(native, first, first)
    assert memory.hold(span) != first, "a new registration is another one"


def test_destinations_in_an_arena_are_registered_with_it(native: NativeAgent) -> None:
    arena, source = HostArena(1 << 20), HostArena(PAGE)
    memory = Registrations(native)
    landing = Landing(memory)
    whole = memory.hold(span_of(arena.region))
    parts = landing.blocks([Span(arena.region.address + n * 1000, 10) for n in range(1000)])
    assert {device for _, _, device in parts} == {whole[2]}
    source.region.view()[:3] = b"abc"
    (address, _, device) = memory.hold(span_of(source.region))
    copy(native, (address, 3, device), (parts[7][0], 3, parts[7][2]))
    assert bytes(arena.region.view()[7000:7003]) == b"abc"


def test_other_destinations_are_registered_with_their_pages(native: NativeAgent) -> None:
    memory = Registrations(native)
    landing = Landing(memory)
    data = bytearray(64 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(data))
    *near, far = landing.blocks([*(Span(start + n * PAGE, 100) for n in range(8)), Span(start + 40 * PAGE, 2 * PAGE)])
    assert len({device for _, _, device in near}) == 1
    assert near[0][2] != far[2]
    (all_of_it,) = landing.blocks([Span(start, 60 * PAGE)])
    copy(native, all_of_it, all_of_it)
    landing.release()
    with pytest.raises(TransportUnavailable):
        copy(native, near[0], near[0])


def test_idle_peers_stay_connected_up_to_a_number(native: NativeAgent) -> None:
    peers, arena, own = Peers(native), HostArena(PAGE), HostArena(PAGE)
    target = Registrations(native).hold(span_of(own.region))
    others = [agent(f"source-{number}") for number in range(IDLE_PEERS + 1)]
    blocks = [Registrations(other).hold(span_of(arena.region)) for other in others]

    for number, other in enumerate(others):
        peers.connect(other.name, other.metadata([blocks[number]]))
        read(native, other.name, blocks[number], target)
        peers.disconnect(other.name, lost=False)
    with pytest.raises(TransportUnavailable):
        read(native, "source-0", blocks[0], target)
    read(native, "source-1", blocks[1], target)
    peers.connect("source-1", others[1].metadata([blocks[1]]))
    peers.disconnect("source-1", lost=True)
    with pytest.raises(TransportUnavailable):
        read(native, "source-1", blocks[1], target)
    for other in others:
        other.end()


def test_peers_are_renewed_and_used_peers_stay(native: NativeAgent) -> None:
    peers, arena, own, other = Peers(native), HostArena(PAGE), HostArena(PAGE), agent("source")
    target, block = (Registrations(a).hold(span_of(m.region)) for a, m in ((native, own), (other, arena)))
    metadata = other.metadata([block])
    for _ in range(RENEW_AFTER - 1):
        peers.connect("source", metadata)
        peers.disconnect("source", lost=False)
    peers.connect("source", metadata)
    read(native, "source", block, target)
    peers.disconnect("source", lost=False)
    with pytest.raises(TransportUnavailable):
        native.post("source", [target], [block])
    other.end()


def test_a_peer_stays_until_what_was_left_of_it_is_over(native: NativeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, arena, own, other = Peers(native), HostArena(PAGE), HostArena(PAGE), agent("source")
    target, block = (Registrations(a).hold(span_of(m.region)) for a, m in ((native, own), (other, arena)))
    peers.connect("source", other.metadata([block]))
    handle = native.post("source", [target], [block])
    with monkeypatch.context() as asleep:
        asleep.setattr(native, "landed", lambda handle: False)
        peers.leave("source", handle)
        peers.disconnect("source", lost=True)
    read(native, "source", block, target)
    peers.connect(native.name)
    with pytest.raises(TransportUnavailable):
        native.post("source", [target], [block])
    peers.disconnect(native.name, lost=False)
    other.end()


def test_metadata_of_another_agent_is_refused(native: NativeAgent) -> None:
    other = agent("source")
    with pytest.raises(TransportUnavailable, match="that of agent source"):
        Peers(native).connect("somebody", other.metadata([]))
    other.end()


def test_an_ended_agent_raises(native: NativeAgent) -> None:
    memory, arena = Registrations(native), HostArena(PAGE)
    block = memory.hold(span_of(arena.region))
    native.end()
    native.end()
    for use in (
        lambda: native.post("target", [block], [block]),
        lambda: native.metadata([block]),
        lambda: native.add_peer(b""),
        lambda: memory.hold(Span(1, 1)),
    ):
        with pytest.raises(PeerLost):
            use()
    memory.let_go(span_of(arena.region))
