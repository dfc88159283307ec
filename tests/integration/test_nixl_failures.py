"""What NIXL must withstand: sources and targets that die or freeze, agents that end, forks, clashing names."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from modelexpress.errors import PeerLost, RegionWithdrawn, TransferTimeout, TransportUnavailable
from modelexpress.memory import HostArena
from modelexpress.transport import Transport
from modelexpress.transport.door import Door
from modelexpress.transport.greeting import Greeting
from modelexpress.transport.nixl_agent import UCX_SETTINGS, Agent, shared_agent
from modelexpress.transport.nixl_descriptor import NixlDescriptor, receive_handover
from modelexpress.transport.nixl_library import load, missing
from modelexpress.transport.nixl_native import NativeAgent
from tests.support.read_target import BIG, PROMPT, Target, long_read
from tests.support.transport_source import TOKEN, Exported, TransportSource, Usage, content, make
from tests.support.transport_target import TransportTarget
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

AT_ONCE = 1.0
"""Seconds within which a death is noticed: before any deadline passes."""


@pytest.fixture
def source() -> Iterator[TransportSource]:
    with TransportSource("nixl") as source:
        yield source


@pytest.fixture
def big(source: TransportSource) -> Exported:
    return source.export([BIG]).grant()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with make("nixl") as transport:
        yield transport


def read_once(transport: Transport, exported: Exported) -> None:
    target = Target(BIG)
    with transport.open(exported.descriptor, TOKEN) as reader:
        reader.read([target.run(0, 0, BIG)]).wait(PROMPT)
    assert target.bytes == content(0, BIG)


def test_a_killed_source_is_noticed_at_once_and_others_are_not_disturbed(
    source: TransportSource, big: Exported, transport: Transport
) -> None:
    with TransportSource("nixl") as other:
        kept = other.export([BIG]).grant()
        target, second = Target(BIG), Target(BIG)
        with transport.open(big.descriptor, TOKEN) as reader, transport.open(kept.descriptor, TOKEN) as survivor:
            transfer = long_read(reader, target)
            source.kill()
            started = time.monotonic()
            with pytest.raises(PeerLost):
                transfer.wait(PROMPT)
            assert time.monotonic() - started < AT_ONCE
            survivor.read([second.run(0, 0, BIG)]).wait(PROMPT)
        assert second.bytes == content(0, BIG)
        target.bytes[:] = bytes(BIG)
        read_once(transport, kept)
        assert not any(target.bytes), "whatever makes progress would copy what was left of the first"


def test_a_forked_child_of_a_killed_source_does_not_hide_its_death(
    source: TransportSource, big: Exported, transport: Transport
) -> None:
    target = Target(BIG)  # it must outlive the reader: bytes land in it until the reader is closed
    with transport.open(big.descriptor, TOKEN) as reader:
        transfer = long_read(reader, target)
        child = source.ask("fork")
        source.kill()
        started = time.monotonic()
        with pytest.raises(PeerLost):
            transfer.wait(PROMPT)
        assert time.monotonic() - started < AT_ONCE
    os.kill(child, 9)


def test_a_source_that_freezes_while_the_agents_connect(
    source: TransportSource, big: Exported, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = NixlDescriptor.parse(big.descriptor)
    agent = shared_agent()
    with ExitStack() as undo:
        greeting = Greeting(bytes.fromhex(found.export), TOKEN.encode())
        sock = Door("127.0.0.1", 0, PROMPT, None, None).call(found.host, found.port, False, greeting, undo)
        handover = receive_handover(sock, time.monotonic() + PROMPT)
        (address, device) = handover.places[0]
        source.stop()
        agent.peers.connect(handover.agent, handover.metadata)
        with pytest.raises(TransferTimeout):
            agent.probe(handover.agent, (address, BIG, device), 0.5)
        with monkeypatch.context() as asleep:
            removed: list[str] = []
            asleep.setattr(agent.native, "remove_peer", removed.append)
            asleep.setattr(agent.native, "release", removed.append)
            agent.peers.disconnect(handover.agent, lost=True)
            assert not removed, "UCX looks at both when the source goes on"
        source.go_on()
    read_once(transport, big)


def test_targets_that_die_cost_their_source_nothing(source: TransportSource, big: Exported) -> None:
    with TransportTarget("nixl", big.descriptor, BIG):
        pass
    wait_until(lambda: not any("connection" in name for name in source.ask("threads")))
    before = source.usage()
    for _ in range(5):
        with TransportTarget("nixl", big.descriptor, BIG) as target:
            target.kill()
    wait_until(lambda: source.usage().threads <= before.threads)
    wait_until(lambda: source.usage().descriptors <= before.descriptors)
    with make("nixl") as transport:
        read_once(transport, big)


def test_the_same_peer_fifty_times(source: TransportSource, big: Exported, transport: Transport) -> None:
    read_once(transport, big)
    own, theirs = Usage.of(os.getpid()), source.usage()
    for _ in range(50):
        read_once(transport, big)
    assert Usage.of(os.getpid()).descriptors <= own.descriptors
    wait_until(lambda: source.usage().descriptors <= theirs.descriptors)


def test_memory_that_is_published_again_is_read_as_it_is_then(source: TransportSource, transport: Transport) -> None:
    for _ in range(3):
        exported = source.export([BIG]).grant()
        read_once(transport, exported)
        exported.close()
        with pytest.raises(RegionWithdrawn):
            transport.open(exported.descriptor, TOKEN)


def test_idle_readers_let_a_source_withdraw_at_once(big: Exported, transport: Transport) -> None:
    with transport.open(big.descriptor, TOKEN), transport.open(big.descriptor, TOKEN):
        started = time.monotonic()
        big.close()
        assert time.monotonic() - started < AT_ONCE


def test_nothing_lands_after_close_even_when_a_read_cannot_be_cancelled(source: TransportSource, big: Exported) -> None:
    # Over emulated TCP, which is never used otherwise, a frozen source holds its answers back and sends them later.
    emulating = Agent({"TLS": "tcp", "PROTO_EMULATION_ENABLE": "y"})
    target = Target(BIG)
    with make("nixl", agent=lambda: emulating) as transport:
        with transport.open(big.descriptor, TOKEN) as reader:
            transfer = long_read(reader, target)
            source.stop()
            with pytest.raises(TransferTimeout, match="MX_STALL_TIMEOUT"):
                transfer.wait(PROMPT)
        assert not emulating.native.usable, "nothing less stops what was posted"
        target.bytes[:] = bytes(BIG)
        source.go_on()
        with suppress(
            OSError, ValueError, AssertionError
        ):  # UCX may abort a source that was about to answer: why it is not used
            source.export([4 * BIG])
        assert not any(target.bytes)


def test_readers_and_exports_outlive_the_agent(transport: Transport) -> None:
    arena, target = HostArena(BIG), Target(BIG)
    arena.region.view()[:] = content(0, BIG)
    export = transport.export([arena.region])
    export.grant(TOKEN)
    with transport.open(export.descriptor, TOKEN) as reader:
        shared_agent().native.end()
        with pytest.raises(PeerLost):
            reader.read([target.run(0, 0, BIG)]).wait(PROMPT)
    with transport.open(export.descriptor, TOKEN) as reader:
        reader.read([target.run(0, 0, BIG)]).wait(PROMPT)
    assert target.bytes == content(0, BIG)


def test_two_agents_of_one_name_are_told_apart() -> None:
    library = load()
    one, other, target = (NativeAgent(library, name, "UCX", UCX_SETTINGS) for name in ("same", "same", "target"))
    assert target.add_peer(one.metadata([])) == "same"
    with pytest.raises(TransportUnavailable):
        target.add_peer(other.metadata([]))
    with pytest.raises(TransportUnavailable):
        one.add_peer(other.metadata([]))
    for agent in (target, one, other):
        agent.end()


FORKS = """
import os, sys
from modelexpress.memory import HostArena
from modelexpress.transport import Run
from tests.support.transport_source import TOKEN, make

arena, target = HostArena(4096), HostArena(4096)
with make("nixl") as transport:
    export = transport.export([arena.region])
    export.grant(TOKEN)
    with transport.open(export.descriptor, TOKEN) as reader:
        child = os.fork()
        if child == 0:
            sys.exit(7)  # with everything that an interpreter does at its end
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        reader.read([Run(0, 0, target.region.address, 4096)]).wait(5)
sys.stdout.write("through")
"""


def test_a_forked_child_ends_and_its_parent_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "through"), done.stderr
